//! Events: what a user reads in `kubectl describe` when a verdict about an object has changed.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use netweft_crds::names::OPERATOR_FIELD_MANAGER;
use tracing::warn;

use crate::client::request;
use crate::world::News;

/// Tells users.
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events in the name of this operator.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        let reporter = Reporter {
            controller: OPERATOR_FIELD_MANAGER.to_owned(),
            instance,
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Tells the news about an object. An event that is lost is not tried again: the condition stands.
    pub async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        name: &str,
        uid: Option<&str>,
        news: &News,
    ) {
        let kind = K::kind(&()).into_owned();
        let object = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(kind),
            name: Some(name.to_owned()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if news.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: news.reason.clone(),
            note: Some(shortened(&news.message)),
            action: news.condition.clone(),
            secondary: None,
        };
        if let Err(error) = request(
            "create",
            "Event",
            name,
            self.recorder.publish(&event, &object),
        )
        .await
        {
            warn!(error = error.chain(), "event lost");
        }
    }
}

/// The API server takes notes of up to 1 KiB.
fn shortened(message: &str) -> String {
    const MOST: usize = 1000;
    match message
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| *at >= MOST)
    {
        Some(at) => message.split_at(at).0.to_owned(),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        let long = "ä".repeat(1000);
        assert!(shortened(&long).len() <= 1002);
        assert_eq!(shortened("short"), "short");
    }
}
