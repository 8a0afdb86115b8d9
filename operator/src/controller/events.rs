//! Events: the changes of conditions that `kubectl describe` shows.
//!
//! A separate task sends them, so a slow API server does not delay a plan.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use netweft_crds::names::OPERATOR_FIELD_MANAGER;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::controller::api_request::request;
use crate::plan::model::cluster_state::ConditionEvent;

/// Concurrent requests: as many as for statuses, so the queue does not grow.
const CONCURRENCY: usize = 16;
/// Maximum number of queued Events.
const MAX_QUEUED: usize = 4096;

/// The queue of Events to publish.
#[derive(Clone)]
pub struct Events {
    waiting: mpsc::Sender<(Event, ObjectReference)>,
}

impl Events {
    /// Starts the publisher with this operator as the reporting instance. Its task is one of `tasks`, and ends with the
    /// last [`Events`].
    pub fn start(client: &Client, identity: Option<String>, tasks: &mut JoinSet<()>) -> Self {
        let reporter = Reporter {
            controller: OPERATOR_FIELD_MANAGER.to_owned(),
            instance: identity,
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let (waiting, next) = mpsc::channel::<(Event, ObjectReference)>(MAX_QUEUED);
        let next = stream::unfold(next, |mut next| async move {
            let event = next.recv().await?;
            Some((event, next))
        });
        tasks.spawn(async move {
            let send = |(event, object): (Event, ObjectReference)| {
                let recorder = &recorder;
                async move {
                    let name = object.name.as_deref().unwrap_or_default();
                    let sent = recorder.publish(&event, &object);
                    if let Err(error) = request("create", "Event", name, sent).await {
                        warn!(error = error.chain(), "sending Event failed");
                    }
                }
            };
            next.for_each_concurrent(CONCURRENCY, send).await;
        });
        Self { waiting }
    }

    /// Queues an Event about an object. A lost Event is not sent again, because the condition still has its content.
    pub fn publish<K: Resource<DynamicType = ()>>(
        &self,
        name: &str,
        uid: Option<&str>,
        condition_event: &ConditionEvent,
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
            type_: if condition_event.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: condition_event.reason.clone(),
            note: Some(truncated(&condition_event.message)),
            action: condition_event.condition.clone(),
            secondary: None,
        };
        if self.waiting.try_send((event, object)).is_err() {
            warn!(
                name,
                reason = condition_event.reason,
                waiting = MAX_QUEUED,
                "Event dropped, too many are waiting"
            );
        }
    }
}

/// The API server accepts notes of up to 1 KiB.
fn truncated(message: &str) -> String {
    const MAX_LENGTH: usize = 1000;
    match message
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| *at >= MAX_LENGTH)
    {
        Some(at) => message.split_at(at).0.to_owned(),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use netweft_crds::IPPool;

    use super::*;
    use crate::testing::unresponsive_client;

    #[tokio::test]
    async fn hung_event_request_does_not_block_controller() {
        let (start, mut tasks) = (Instant::now(), JoinSet::new());
        let events = Events::start(&unresponsive_client().await, None, &mut tasks);
        let condition_event = ConditionEvent {
            condition: "Ready".to_owned(),
            reason: "Allocatable".to_owned(),
            message: "9 blocks free".to_owned(),
            warning: false,
        };
        for _ in 0..2 * MAX_QUEUED {
            events.publish::<IPPool>("p", None, &condition_event);
            tokio::task::yield_now().await;
        }
        assert!(start.elapsed().as_secs() < 10);
    }

    #[test]
    fn long_event_message_is_truncated_at_character_boundary() {
        let long = "ä".repeat(1000);
        assert!(truncated(&long).len() <= 1002);
        assert_eq!(truncated("short"), "short");
    }
}
