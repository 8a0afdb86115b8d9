//! Schema fragments for types whose own schema would be too loose or too costly for CEL.
//!
//! Every string and list has a bound: the API server estimates the worst cost of a rule from them and refuses a
//! definition whose rules could be too expensive.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A CIDR in text, IPv4 or IPv6.
pub fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 3, "maxLength": 43 })
}

/// An optional CIDR in text.
pub fn optional_cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 3, "maxLength": 43, "nullable": true })
}

/// A list of CIDRs.
pub fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 256, "items": { "type": "string", "minLength": 3, "maxLength": 43 } })
}

/// A list of addresses and CIDRs.
pub fn addresses_or_cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 256, "items": { "type": "string", "minLength": 2, "maxLength": 43 } })
}

/// An IP address in text.
pub fn ip(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 2, "maxLength": 39 })
}

/// A list of BGP communities in text.
pub fn communities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 32, "items": { "type": "string", "minLength": 3, "maxLength": 32 } })
}

/// An optional IP address in text.
pub fn optional_ip(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 2, "maxLength": 39, "nullable": true })
}

/// A duration as Go writes it ("90s", "50ms", "2m").
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 2, "maxLength": 16 })
}

/// A number, or a percentage in text.
pub fn number_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true, "maxLength": 4 })
}

/// A label selector; Kubernetes' own schema of it has no bounds.
pub fn selector(_: &mut SchemaGenerator) -> Schema {
    selector_schema(false)
}

/// An optional label selector.
pub fn optional_selector(_: &mut SchemaGenerator) -> Schema {
    selector_schema(true)
}

fn selector_schema(nullable: bool) -> Schema {
    let text = json_schema!({ "type": "string", "maxLength": 63 });
    let expression = json_schema!({
        "type": "object",
        "properties": {
            "key": { "type": "string", "minLength": 1, "maxLength": 317 },
            "operator": { "type": "string", "maxLength": 16 },
            "values": { "type": "array", "maxItems": 64, "items": text },
        },
        "required": ["key", "operator"],
    });
    let mut schema = json_schema!({
        "type": "object",
        "properties": {
            "matchExpressions": { "type": "array", "maxItems": 32, "items": expression },
            "matchLabels": { "type": "object", "maxProperties": 32, "additionalProperties": text },
        },
    });
    if nullable {
        schema.insert("nullable".to_owned(), true.into());
    }
    schema
}

/// Conditions: a list keyed by `type`, so that two writers can each own their own (server-side apply).
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item =
        generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
