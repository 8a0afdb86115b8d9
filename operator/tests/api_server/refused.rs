//! Every rule refuses something: `tests/refused` holds an object for each, and one of them without is a failure.
//!
//! A file is one refusal. Its first line is `# refused: ` and words of the refusal: the field, and a value that is
//! legal. The last of its documents is refused; those before it are created first, and if one of them has its name, it
//! is an update. A document with a status and no spec is written to the status, one with neither is a deletion. A line `# by: ` names an author other
//! than the administrator: `the agent of NODE`, or `an agent of no node`; either may do everything by its roles, so that
//! what refuses is the policy.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::Value;

use crate::chart;
use crate::control_plane::ControlPlane;
use crate::objects::{any, create_node, eventually, give_everything_to_the_agents, object, token};

const TIMEOUT: Duration = Duration::from_secs(30);

/// One file.
struct Case {
    file: String,
    words: String,
    author: Author,
    before: Vec<Value>,
    last: Value,
}

/// Who writes the last document.
enum Author {
    Administrator,
    AgentOf(Option<String>),
}

/// What the API server said.
struct Refusal {
    kind: String,
    message: String,
    /// Field, with `[]` for any index, and message.
    causes: Vec<(String, String)>,
}

#[tokio::test]
async fn every_admission_rule_refuses_a_test_object() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "refused-node", "10.1.0.1").await;
    give_everything_to_the_agents(&admin).await;
    let unbound = token(&admin, "netweft-agent", None).await;
    let bound = token(&admin, "netweft-agent", Some("refused-node")).await;
    let operator = plane.client(&token(&admin, "netweft-operator", None).await);
    let (mut refusals, mut problems) = (Vec::new(), Vec::new());
    for case in cases() {
        let author = match &case.author {
            Author::Administrator => admin.clone(),
            Author::AgentOf(None) => plane.client(&unbound),
            Author::AgentOf(Some(node)) => {
                assert_eq!(node, "refused-node", "{}", case.file);
                plane.client(&bound)
            }
        };
        match refusal([&admin, &operator], &author, &case).await {
            Ok(refusal) => refusals.push(refusal),
            Err(problem) => problems.push(format!("{}: {problem}", case.file)),
        }
    }
    let idle = rules().into_iter().filter(|rule| !rule.is_in(&refusals));
    problems.extend(idle.map(|rule| format!("no object of tests/refused is refused by: {rule}")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What is said to the case's last document; policies and rights take effect a moment after they are written.
async fn refusal(
    [admin, operator]: [&Client; 2],
    author: &Client,
    case: &Case,
) -> Result<Refusal, String> {
    // Nobody else may create or delete NodeSubnets.
    let writer = |object: &Value| {
        if object["kind"] == "NodeSubnet" {
            operator
        } else {
            admin
        }
    };
    for object in &case.before {
        let api = any(writer(object), object);
        let new = self::object(object.clone());
        let created = api.create(&PostParams::default(), &new).await;
        created.unwrap_or_else(|error| panic!("{}: {error}", case.file));
    }
    let mut said = String::new();
    let asked = eventually(&case.file, TIMEOUT, async || {
        let status = ask(author, case).await;
        said = status.as_ref().map_or_else(
            || "accepted".to_owned(),
            |status| status.message.to_string(),
        );
        status.filter(|status| status.message.contains(&case.words))
    });
    let answer = tokio::time::timeout(TIMEOUT / 2, asked).await;
    for object in &case.before {
        let api = any(writer(object), object);
        let gone = api.delete(name(object), &DeleteParams::default()).await;
        gone.unwrap_or_else(|error| panic!("{}: {error}", case.file));
    }
    let status = answer.map_err(|_| format!("not refused in these words, but: {said}"))?;
    let refusal = Refusal::new(case, &status);
    if refusal.causes.len() > 1 {
        return Err(format!("more than one thing is wrong: {}", refusal.message));
    }
    Ok(refusal)
}

/// Asks for the last document's write; nothing is stored.
async fn ask(author: &Client, case: &Case) -> Option<Status> {
    let (api, name) = (any(author, &case.last), name(&case.last));
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let of_same_name =
        |object: &&Value| object["kind"] == case.last["kind"] && self::name(object) == name;
    let result = if case.last.get("spec").is_none() && case.last.get("status").is_some() {
        let params = PatchParams {
            dry_run: true,
            ..PatchParams::apply("an-author").force()
        };
        api.patch_status(name, &params, &Patch::Apply(&case.last))
            .await
    } else if case.last.get("spec").is_none() {
        let params = DeleteParams {
            dry_run: true,
            ..DeleteParams::default()
        };
        let deleted = api.delete(name, &params).await;
        deleted.map(|_| object(case.last.clone()))
    } else if case.before.iter().find(of_same_name).is_some() {
        let mut new: kube::core::DynamicObject = object(case.last.clone());
        let old = api.get(name).await.unwrap();
        new.metadata.resource_version = old.metadata.resource_version;
        api.replace(name, &dry, &new).await
    } else {
        api.create(&dry, &object(case.last.clone())).await
    };
    match result {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(*status),
        Err(error) => panic!("{}: {error}", case.file),
    }
}

impl Refusal {
    fn new(case: &Case, status: &Status) -> Self {
        // Said besides, when the schema itself is not met.
        const ASIDE: &str = "some validation rules were not checked";
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let causes = causes.filter(|cause| !cause.message.contains(ASIDE));
        Self {
            kind: case.last["kind"].as_str().unwrap().to_owned(),
            message: status.message.clone(),
            causes: causes
                .map(|cause| (without_indices(&cause.field), cause.message.clone()))
                .collect(),
        }
    }
}

fn without_indices(field: &str) -> String {
    let mut parts = field.split('[');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |path, part| {
        format!("{path}[]{}", part.split_once(']').unwrap().1)
    })
}

/// Something that refuses.
enum Rule {
    /// A rule in a definition.
    Schema {
        kind: String,
        field: String,
        message: String,
    },
    /// A validation of an admission policy; the words that stand in its message whatever the object is.
    Policy { name: String, words: Vec<String> },
}

impl Rule {
    fn is_in(&self, refusals: &[Refusal]) -> bool {
        refusals.iter().any(|refusal| match self {
            Self::Schema {
                kind,
                field,
                message,
            } => {
                let by_this =
                    |cause: &(String, String)| cause.0 == *field && cause.1.contains(message);
                refusal.kind == *kind && refusal.causes.iter().any(by_this)
            }
            Self::Policy { name, words } => {
                refusal
                    .message
                    .contains(&format!("ValidatingAdmissionPolicy '{name}'"))
                    && words.iter().all(|words| refusal.message.contains(words))
            }
        })
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Schema {
                kind,
                field,
                message,
            } => write!(f, "{kind} {field}: {message}"),
            Self::Policy { name, words } => write!(f, "policy {name}: {}", words.join("…")),
        }
    }
}

/// All rules: of the definitions, and of the policies as the chart renders them.
fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for file in files(&project("charts/netweft/crds")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let definition: Value = serde_saphyr::from_str(&text).unwrap();
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            collect(kind, "", &version["schema"]["openAPIV3Schema"], &mut rules);
        }
    }
    let of_definitions = rules.len();
    for policy in chart::of_kind(&chart::rendered(&[]), "ValidatingAdmissionPolicy") {
        let name = policy["metadata"]["name"].as_str().unwrap();
        for validation in policy["spec"]["validations"].as_array().unwrap() {
            let name = name.to_owned();
            let words = fixed_words(validation);
            rules.push(Rule::Policy { name, words });
        }
    }
    assert!(of_definitions > 60 && rules.len() >= of_definitions + 4);
    let all: BTreeSet<_> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(all.len(), rules.len(), "two rules say the same: {all:#?}");
    rules
}

/// The rules and, in specs, the lists of values below `schema`.
fn collect(kind: &str, field: &str, schema: &Value, rules: &mut Vec<Rule>) {
    let mut add = |message: &str| {
        let (kind, message) = (kind.to_owned(), message.to_owned());
        // The field of a rule about the object as a whole is called so.
        let field = if field.is_empty() { "<nil>" } else { field }.to_owned();
        rules.push(Rule::Schema {
            kind,
            field,
            message,
        });
    };
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        add(rule["message"].as_str().unwrap());
    }
    if schema.get("enum").is_some() && field.starts_with("spec") {
        add("Unsupported value");
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        let field = if field.is_empty() {
            name.clone()
        } else {
            format!("{field}.{name}")
        };
        collect(kind, &field, below, rules);
    }
    if schema["items"].is_object() {
        collect(kind, &format!("{field}[]"), &schema["items"], rules);
    }
}

/// The string literals of the message's expression, or the message.
fn fixed_words(validation: &Value) -> Vec<String> {
    match validation["messageExpression"].as_str() {
        Some(expression) => expression
            .split('\'')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect(),
        None => vec![validation["message"].as_str().unwrap().to_owned()],
    }
}

fn cases() -> Vec<Case> {
    files(&project("tests/refused"))
        .iter()
        .map(|file| case(file))
        .collect()
}

fn case(file: &Path) -> Case {
    let text = std::fs::read_to_string(file).unwrap();
    let header = |key: &str| {
        let mut lines = text.lines().take_while(|line| line.starts_with("# "));
        lines
            .find_map(|line| line.strip_prefix(key))
            .map(str::to_owned)
    };
    let file = file.file_name().unwrap().to_string_lossy().into_owned();
    let author = match header("# by: ") {
        None => Author::Administrator,
        Some(author) if author == "an agent of no node" => Author::AgentOf(None),
        Some(author) => {
            let node = author.strip_prefix("the agent of ");
            Author::AgentOf(Some(
                node.unwrap_or_else(|| panic!("{file}: who is {author}?"))
                    .to_owned(),
            ))
        }
    };
    let mut before: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Case {
        words: header("# refused: ")
            .unwrap_or_else(|| panic!("{file} does not begin with # refused:")),
        file,
        author,
        last: before.pop().unwrap(),
        before,
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The YAML files of a directory, by name.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect()
}
