#!/usr/bin/env bash
# Checks of the sources: formatting, clippy, dependencies and their directions, generated files, requirements of targets, shell
# scripts, the chart, documents. All steps run; each is a condition, so the last command of a step decides. The exit code is 0 if
# all steps pass, and the last line counts them.
set -uo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
require lint
set +e
cargo_environment
cd "$project" || exit 1

deny_version=0.20.2
install_deny() { # ENTRY_DIR
  # Away from the project: its .cargo/config.toml is for the project's own programs.
  (cd / && cargo install cargo-deny --version "$deny_version" --locked --root "$1" --target-dir "$1/target" && rm -rf "$1/target")
}

formatting() { cargo fmt --all --check; }
clippy() { cargo clippy --release --locked --workspace --all-targets -- -D warnings; }
documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --workspace --no-deps --quiet; }
dependencies() {
  local deny
  deny=$(cache_entry cargo-deny "$(hash_of "$deny_version" "$(rustc -vV)")" install_deny) || return
  # Advisories need a database from the network and change without us: Dependabot watches them.
  "$deny/bin/cargo-deny" --locked check bans licenses sources
}
plugin_without_kubernetes() { ! cargo tree --locked -p netweft-cni --edges normal --prefix none | grep -E '^(kube|k8s-openapi|netweft-crds) '; }
generated() {
  local written
  written=$(mktemp -d)
  # Built as everything else is: another choice of targets would mean other features, and compiling it all again.
  cargo build --release --locked --quiet --workspace --all-targets || return
  "$BIN_DIR/crdgen" "$written" || return
  if ! diff -r "$written" charts/netweft/crds; then
    echo 'charts/netweft/crds is not what the types say: make generate'
    return 1
  fi
}
requirements() { tests/requirements.sh; }
shell_scripts() {
  git ls-files -z '*.sh' .ci/run e2e/cluster/oci-runtime-shim | xargs -0 shellcheck -x
}
chart() {
  local helm
  helm=$(e2e/cluster/build-tools.sh helm)/helm
  "$helm" lint --strict charts/netweft --set image.repository=netweft &&
    "$helm" template netweft charts/netweft --namespace netweft-system --set image.repository=netweft >/dev/null
}
markdown() { # no line of more than 120 characters, tables and code apart
  # shellcheck disable=SC2016 # awk's own $0, and the fences of code.
  git ls-files -z '*.md' | xargs -0 awk '
    FNR == 1 { code = 0 }
    /^ *```/ { code = !code }
    !code && !/^\|/ && length($0) > 120 { print FILENAME ":" FNR ": " length($0) " characters; at most 120"; bad = 1 }
    END { exit bad }'
}
terminology() { # no word that docs/glossary.md replaces
  local words
  words=$(awk -F '|' '/^\| / && NF == 5 && $4 !~ /replaces/ { print $4 }' docs/glossary.md | grep -oE '[A-Za-z_]+' | paste -sd '|')
  ! git grep -nwE "$words" -- . ':!docs/glossary.md' ':!CHANGELOG.md' ':!*.lock' ':!go.sum'
}
documented_paths() { # every path of the project that the documentation names exists
  local path bad=0
  # shellcheck disable=SC2016 # The backticks are those of Markdown.
  for path in $(git grep -ohE '`(bench|charts|client|cni|common|crds|docs|e2e|examples|hack|netstate|node-agent|operator|telemetry|tests|udp-relay)/[A-Za-z0-9_./-]+`' -- '*.md' ':!CHANGELOG.md' ':!CONTRIBUTING.md' | tr -d '`' | sort -u); do
    [ -e "$path" ] || { echo "$path does not exist; correct the document: git grep -n '$path' -- '*.md'"; bad=1; }
  done
  return "$bad"
}
test_names() { # no name of a test of more than 60 characters: subject, condition, outcome
  # shellcheck disable=SC2016 # awk's own $0.
  git ls-files -z '*.rs' | xargs -0 awk '
    FNR == 1 { left = 0 }
    /^ *#\[(tokio::)?test[](]/ { left = 5 }
    left > 0 && match($0, /fn [a-z0-9_]+/) {
      if (RLENGTH - 3 > 60) { print FILENAME ":" FNR ": " RLENGTH - 3 " characters; at most 60"; bad = 1 }
      left = 0
    }
    { left-- }
    END { exit bad }'
}
typed_errors() { # no Result<_, String>: an error has a type; tests, tools for tests and clap's value parsers apart
  # shellcheck disable=SC2016 # awk's own $0.
  git ls-files -z '*.rs' ':!*/tests/*' ':!*/tests.rs' ':!e2e' ':!bench' ':!*/commands/args.rs' ':!telemetry/src/logging.rs' | xargs -0 awk '
    # Reports each Result of the text whose second argument is String, over line ends as well.
    function check(    rest, start, at, depth, sign, argument, last, before) {
      gsub(/[-=]>/, "  ", text)
      rest = text
      start = 0
      while (match(rest, /(Result|Ok|Err)(::)?</)) {
        at = RSTART + RLENGTH
        argument = last = ""
        for (depth = 1; depth > 0 && at <= length(rest); at++) {
          sign = substr(rest, at, 1)
          if (sign ~ /[<([{]/) depth++
          if (sign ~ /[])}>]/) depth--
          if (depth == 1 && sign == ",") { last = last "," argument; argument = "" }
          else if (depth > 0 && sign !~ /[ \n]/) argument = argument sign
        }
        if ((last "," argument) ~ /^,[^,].*,String,?$/) {
          before = substr(text, 1, start + RSTART)
          print file ":" gsub(/\n/, "", before) + 1 ": an error that is a String"
          bad = 1
        }
        start += RSTART + RLENGTH - 1
        rest = substr(rest, RSTART + RLENGTH)
      }
    }
    FNR == 1 { check(); text = ""; file = FILENAME; test = 0 }
    previous ~ /^#\[cfg\(test\)\]/ && /^(pub(\(crate\))? )?mod [a-z_]+ \{/ { test = 1 }
    { previous = $0; sub(/\/\/.*/, ""); text = text (test ? "" : $0) "\n" }
    /^}/ { test = 0 }
    END { check(); exit bad }'
}
stands_alone() { # nothing refers to a place outside the project or to a machine
  ! git grep -nIE '\.\./shared|(^|[^A-Za-z0-9_.-])/(work|farm)/|/root/' -- . ':!*.lock' ':!go.sum' ':!hack/lint.sh'
}

passed=0 failed=0
for step in formatting clippy documentation dependencies plugin_without_kubernetes generated requirements shell_scripts chart markdown documented_paths terminology test_names typed_errors stands_alone; do
  started=$SECONDS
  if "$step"; then
    passed=$((passed + 1)) verdict=ok
  else
    failed=$((failed + 1)) verdict=FAILED
  fi
  echo "lint $step ... $verdict ($((SECONDS - started)) s)"
done
echo "lint: $passed passed, $failed failed"
((failed == 0))
