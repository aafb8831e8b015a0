//! Clients that are members of a consumer group, whatever they read.

use rdkafka::{
    client::Client as NativeClient,
    consumer::{CommitMode, Consumer as _, ConsumerContext, StreamConsumer},
    error::KafkaResult,
    message::BorrowedMessage,
};

use super::replaceable::{self, Client, ReplaceableClient};

impl<C: ConsumerContext + 'static> Client for StreamConsumer<C> {
    type Context = C;

    fn native(&self) -> &NativeClient<C> {
        self.client()
    }
}

impl<C: ConsumerContext + 'static> ReplaceableClient<StreamConsumer<C>> {
    /// Next record, as `read` returns it. It must be polled regularly, even if no record is needed, or the group removes
    /// this member. Dropping the future loses nothing.
    pub(super) async fn recv<T>(&self, read: impl Fn(&BorrowedMessage<'_>) -> T) -> KafkaResult<T> {
        loop {
            let renewed = self.renewed();
            let client = self.current();
            tokio::select! {
                biased;
                received = client.recv() => return received.map(|record| read(&record)),
                () = renewed => {}
            }
        }
    }

    /// Commits stored offsets and leaves the group. Blocks the thread until no other reference to the client exists.
    pub(super) fn leave(self) {
        let is_connected = self.connection().is_up();
        let client = self.into_current();
        if !is_connected {
            // No broker can receive the commit, and the client would wait for an answer.
            return replaceable::close_in_background(client);
        }
        let client = replaceable::wait_for_last_reference(client);
        if let Err(error) = client.commit_consumer_state(CommitMode::Sync) {
            tracing::debug!("offsets could not be committed at the end: {error}");
        }
    }
}
