//! Every validation rule refuses an object: `tests/refused` has an object for each rule, and a rule without an object
//! fails the test.
//!
//! Each file is one refusal. Its first line is `# refused: ` and a part of the message: the field, and a legal value.
//! The last document is refused. The documents before it are created first. If one of them has the same name, the last
//! document is an update. A document with a status and without a spec is written to the status. A document with neither
//! is a deletion. A line `# by: ` names another author than the administrator: `the operator`, `the agent of NODE`, or
//! `an agent of no node`. The agents have all rights, so that only the policy refuses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::Value;

use crate::chart;
use crate::control_plane::ControlPlane;
use crate::objects::{
    create_node, dynamic_api, eventually, grant_all_rights_to_agents, object, token,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A file of `tests/refused`.
struct Case {
    file: String,
    message_part: String,
    author: Author,
    setup: Vec<Value>,
    refused_object: Value,
}

/// The author of the last document.
enum Author {
    Administrator,
    Operator,
    AgentOf(Option<String>),
}

/// The error of the API server.
struct Refusal {
    kind: String,
    message: String,
    /// Field (`[]` for any index) and message.
    causes: Vec<(String, String)>,
}

#[tokio::test]
async fn every_admission_rule_refuses_a_test_object() {
    let plane = ControlPlane::with_chart().await;
    let admin = plane.admin();
    create_node(&admin, "refused-node", "10.1.0.1").await;
    grant_all_rights_to_agents(&admin).await;
    let unbound = token(&admin, "netweft-agent", None).await;
    let bound = token(&admin, "netweft-agent", Some("refused-node")).await;
    let operator = plane.client(&token(&admin, "netweft-operator", None).await);
    let (mut refusals, mut problems) = (Vec::new(), Vec::new());
    for case in cases() {
        let author = match &case.author {
            Author::Administrator => admin.clone(),
            Author::Operator => operator.clone(),
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
    let unused = rules()
        .into_iter()
        .filter(|rule| !rule.has_refused_one_of(&refusals));
    problems.extend(unused.map(|rule| format!("no object of tests/refused is refused by: {rule}")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The refusal of the case's last document. Retries, because policies and rights take effect with a delay.
async fn refusal(
    [admin, operator]: [&Client; 2],
    author: &Client,
    case: &Case,
) -> Result<Refusal, String> {
    // The policy lets only the operator create and delete NodeSubnets.
    let writer = |object: &Value| {
        if object["kind"] == "NodeSubnet" {
            operator
        } else {
            admin
        }
    };
    for object in &case.setup {
        let api = dynamic_api(writer(object), object);
        let new = self::object(object.clone());
        let created = api.create(&PostParams::default(), &new).await;
        created.unwrap_or_else(|error| panic!("{}: {error}", case.file));
    }
    let mut last_message = String::new();
    let attempts = eventually(&case.file, TIMEOUT, async || {
        let status = dry_run(author, case).await;
        last_message = status.as_ref().map_or_else(
            || "accepted".to_owned(),
            |status| status.message.to_string(),
        );
        status.filter(|status| status.message.contains(&case.message_part))
    });
    let result = tokio::time::timeout(TIMEOUT / 2, attempts).await;
    for object in &case.setup {
        let api = dynamic_api(writer(object), object);
        let deleted = api.delete(name(object), &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("{}: {error}", case.file));
    }
    let status =
        result.map_err(|_| format!("not refused with this message, but: {last_message}"))?;
    let refusal = Refusal::new(case, &status);
    if refusal.causes.len() > 1 {
        return Err(format!("more than one violation: {}", refusal.message));
    }
    Ok(refusal)
}

/// Writes the last document in a dry run.
async fn dry_run(author: &Client, case: &Case) -> Option<Status> {
    let (api, name) = (
        dynamic_api(author, &case.refused_object),
        name(&case.refused_object),
    );
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let of_same_name = |object: &&Value| {
        object["kind"] == case.refused_object["kind"] && self::name(object) == name
    };
    let result = if case.refused_object.get("spec").is_none()
        && case.refused_object.get("status").is_some()
    {
        let params = PatchParams {
            dry_run: true,
            ..PatchParams::apply("an-author").force()
        };
        api.patch_status(name, &params, &Patch::Apply(&case.refused_object))
            .await
    } else if case.refused_object.get("spec").is_none() {
        let params = DeleteParams {
            dry_run: true,
            ..DeleteParams::default()
        };
        let deleted = api.delete(name, &params).await;
        deleted.map(|_| object(case.refused_object.clone()))
    } else if case.setup.iter().find(of_same_name).is_some() {
        let mut new: kube::core::DynamicObject = object(case.refused_object.clone());
        let old = api.get(name).await.unwrap();
        new.metadata.resource_version = old.metadata.resource_version;
        api.replace(name, &params, &new).await
    } else {
        api.create(&params, &object(case.refused_object.clone()))
            .await
    };
    match result {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(*status),
        Err(error) => panic!("{}: {error}", case.file),
    }
}

impl Refusal {
    fn new(case: &Case, status: &Status) -> Self {
        // The API server adds this if the schema itself is violated.
        const SKIPPED_RULES: &str = "some validation rules were not checked";
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let causes = causes.filter(|cause| !cause.message.contains(SKIPPED_RULES));
        Self {
            kind: case.refused_object["kind"].as_str().unwrap().to_owned(),
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

/// A rule that refuses objects.
enum ValidationRule {
    /// A rule in a CRD.
    Schema {
        kind: String,
        field: String,
        message: String,
    },
    /// A validation of an admission policy, with the constant parts of its message.
    Policy { name: String, parts: Vec<String> },
}

impl ValidationRule {
    fn has_refused_one_of(&self, refusals: &[Refusal]) -> bool {
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
            Self::Policy { name, parts } => {
                refusal
                    .message
                    .contains(&format!("ValidatingAdmissionPolicy '{name}'"))
                    && parts.iter().all(|parts| refusal.message.contains(parts))
            }
        })
    }
}

impl std::fmt::Display for ValidationRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Schema {
                kind,
                field,
                message,
            } => write!(f, "{kind} {field}: {message}"),
            Self::Policy { name, parts } => write!(f, "policy {name}: {}", parts.join("…")),
        }
    }
}

/// All rules in the CRDs and in the policies that the chart renders.
fn rules() -> Vec<ValidationRule> {
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
            let parts = constant_parts(validation);
            rules.push(ValidationRule::Policy { name, parts });
        }
    }
    assert!(of_definitions > 60 && rules.len() >= of_definitions + 4);
    let all: BTreeSet<_> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        all.len(),
        rules.len(),
        "two rules have the same message: {all:#?}"
    );
    rules
}

/// Collects the rules, and the enums of specs, below `schema`.
fn collect(kind: &str, field: &str, schema: &Value, rules: &mut Vec<ValidationRule>) {
    let mut add = |message: &str| {
        let (kind, message) = (kind.to_owned(), message.to_owned());
        // The API server's name for the object as a whole.
        let field = if field.is_empty() { "<nil>" } else { field }.to_owned();
        rules.push(ValidationRule::Schema {
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

/// The string literals of the message expression, or the message.
fn constant_parts(validation: &Value) -> Vec<String> {
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
        Some(author) if author == "the operator" => Author::Operator,
        Some(author) if author == "an agent of no node" => Author::AgentOf(None),
        Some(author) => {
            let node = author.strip_prefix("the agent of ");
            Author::AgentOf(Some(
                node.unwrap_or_else(|| panic!("{file}: unknown author {author}"))
                    .to_owned(),
            ))
        }
    };
    let mut setup: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Case {
        message_part: header("# refused: ")
            .unwrap_or_else(|| panic!("{file} does not start with # refused:")),
        file,
        author,
        refused_object: setup.pop().unwrap(),
        setup,
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
