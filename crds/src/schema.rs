//! Schemas of types whose derived schema has no bounds, or makes CEL rules too expensive.
//!
//! Every string and list has a bound: the API server estimates the worst cost of a rule from them and refuses a
//! definition whose rules could be too expensive.

use netweft_common::PodInterface;
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::condition::MAX_MESSAGE;
use crate::node_network::MAX_PEERS_WITHOUT_BLOCKS;

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

/// A set of CIDRs.
pub fn cidr_set(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": 256, "items": { "type": "string", "minLength": 3, "maxLength": 43 } })
}

/// A set of addresses and CIDRs.
pub fn addresses_or_cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": 256, "items": { "type": "string", "minLength": 2, "maxLength": 43 } })
}

/// [`netweft_common::PodInterface`], whose crate has no schemas.
pub fn pod_interface(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": [PodInterface::Routed, PodInterface::Bridge] })
}

/// An IP address in text.
pub fn ip(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 2, "maxLength": 39 })
}

/// Addresses of other nodes.
pub fn peers_without_blocks(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": MAX_PEERS_WITHOUT_BLOCKS, "items": { "type": "string", "minLength": 2, "maxLength": 39 } })
}

/// A set of BGP communities in text.
pub fn communities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": 32, "items": { "type": "string", "minLength": 3, "maxLength": 32 } })
}

/// Names of objects.
pub fn object_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 1024, "items": { "type": "string", "minLength": 1, "maxLength": 253 } })
}

/// A list of short texts.
pub fn short_texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 8, "items": { "type": "string", "maxLength": 64 } })
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
    json_schema!({ "x-kubernetes-int-or-string": true, "maxLength": 4, "maximum": 100_000 })
}

/// A label selector. The schema of Kubernetes has no bounds.
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
            "key": {
                "type": "string", "minLength": 1, "maxLength": 317,
                "description": "Key of the label.",
            },
            "operator": {
                "type": "string", "maxLength": 16,
                "description": "In, NotIn, Exists or DoesNotExist.",
            },
            "values": {
                "type": "array", "maxItems": 64, "items": text,
                "description": "Values of the label. In and NotIn need at least one, Exists and DoesNotExist take none.",
            },
        },
        "required": ["key", "operator"],
    });
    let mut schema = json_schema!({
        "type": "object",
        "properties": {
            "matchExpressions": {
                "type": "array", "maxItems": 32, "items": expression,
                "description": "Requirements on labels. All have to be met.",
            },
            "matchLabels": {
                "type": "object", "maxProperties": 32, "additionalProperties": text,
                "description": "Labels with their values. All have to be met.",
            },
        },
    });
    if nullable {
        schema.insert("nullable".to_owned(), true.into());
    }
    schema
}

/// Conditions: a map by `type`, so that two writers can own different conditions (server-side apply). The bounds are those of
/// Kubernetes (`metav1.Condition`); [`crate::condition`] truncates longer messages.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    let item = json_schema!({
        "type": "object",
        "properties": {
            "type": {
                "type": "string", "minLength": 1, "maxLength": 316,
                "description": "Type of the condition.",
            },
            "status": {
                "type": "string", "enum": ["True", "False", "Unknown"],
                "description": "Whether the condition applies.",
            },
            "reason": {
                "type": "string", "minLength": 1, "maxLength": 1024,
                "description": "Cause of the last change of status, as one word.",
            },
            "message": {
                "type": "string", "maxLength": MAX_MESSAGE,
                "description": "Cause for people: what happened, to which object, why, and what to do.",
            },
            "observedGeneration": {
                "type": "integer", "format": "int64", "minimum": 0,
                "description": "Generation of the spec that the condition describes.",
            },
            "lastTransitionTime": {
                "type": "string", "format": "date-time",
                "description": "Time of the last change of status.",
            },
        },
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    });
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
