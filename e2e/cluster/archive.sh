# shellcheck shell=bash
# Writes image archives (the format of `docker save`) and Debian file systems without any container engine; sourced
# after lib.sh. So a node image can be made, cached and loaded into whichever engine comes, and no registry is needed.

# An archive is made in a directory: archive_add adds an image to it, archive_finish prints it as one tar.
archive_add() { # DIR NAME ROOT_DIR CONFIG_JSON [COMPRESSOR]: CONFIG_JSON is the image's "config" object
  local dir=$1 name=$2 root=$3 config=$4 compressor=${5:-cat} layer=$1/layer.new diff_id digest
  # The whole root as one layer, its owners and file capabilities kept, the same bytes for the same files.
  tar -C "$root" --sort=name --mtime=@0 --numeric-owner --xattrs --xattrs-include='*' -cf "$layer" .
  diff_id=$(sha256sum <"$layer" | cut -d' ' -f1)
  $compressor <"$layer" >"$dir/$diff_id.tar"
  rm -f "$layer"
  jq -cn --arg arch "$(go env GOARCH)" --arg layer "sha256:$diff_id" --argjson config "$config" \
    '{architecture: $arch, os: "linux", created: "2020-01-01T00:00:00Z", config: $config,
      rootfs: {type: "layers", diff_ids: [$layer]}, history: [{created_by: "netweft e2e/cluster"}]}' >"$dir/config.new"
  digest=$(sha256sum <"$dir/config.new" | cut -d' ' -f1)
  mv "$dir/config.new" "$dir/$digest.json"
  jq -cn --arg config "$digest.json" --arg name "$name" --arg layer "$diff_id.tar" \
    '{Config: $config, RepoTags: [$name], Layers: [$layer]}' >>"$dir/manifest.parts"
}

archive_finish() { # DIR FILE; takes DIR away
  jq -cs . "$1/manifest.parts" >"$1/manifest.json"
  rm "$1/manifest.parts"
  tar -C "$1" -cf "$2" .
  rm -rf "$1"
}

# The Debian mirror is the one that this machine's own apt uses.
debian_sources() { # RELEASE -> lines for sources.list
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg uri
  uri=$(debian_uris Debian | head -n 1)
  echo "deb [signed-by=$keyring] $uri $1 main"
  # A release to come has its security updates with the rest.
  [[ $1 == "$DEBIAN_RELEASE" ]] || return 0
  uri=$(debian_uris Debian-Security | head -n 1)
  [[ -z $uri ]] || echo "deb [signed-by=$keyring] $uri $1-security main"
}

# debian_root TARGET VARIANT PACKAGE,... [RELEASE]: a directory, or a tar if TARGET ends in .tar
debian_root() {
  local target=$1 variant=$2 packages=$3 release=${4:-$DEBIAN_RELEASE} proxy options=() sources
  require debian-root
  proxy=$(apt-config shell PROXY Acquire::http::Proxy | sed -nE "s/^PROXY='(.*)'$/\1/p")
  [[ -z $proxy ]] || options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
  sources=$(scratch)/sources
  debian_sources "$release" >"$sources"
  # The indices of a release to come are signed for a week, and a mirror may lag behind. The signature still counts.
  [[ $release == "$DEBIAN_RELEASE" ]] || options+=(--aptopt='Acquire::Check-Valid-Until "false"')
  # In a mount namespace of its own, so that nothing stays mounted if this is killed.
  unshare --mount mmdebstrap --mode=root --variant="$variant" --include="$packages" "${options[@]}" \
    --aptopt='Acquire::Retries "3"' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$release" "$target" - <"$sources"
  rm -r "${sources%/*}"
  [[ $variant != extract || ! -d $target ]] || merge_usr "$target"
}

# Packages of newer releases have nothing in /bin and /lib: those are links, which come with a package that is not among them.
merge_usr() { # ROOT
  local directory
  for directory in bin sbin lib lib64; do
    [[ ! -d $1/usr/$directory || -e $1/$directory ]] || ln -s "usr/$directory" "$1/$directory"
  done
}
