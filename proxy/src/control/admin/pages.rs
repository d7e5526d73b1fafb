//! A page that is expensive to make: made once for all requests that wait for it, off the listener's thread.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use outrigger_identity::clock;
use tokio::sync::{Notify, watch};

/// Why a page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NoPage {
    #[error(transparent)]
    Rendering(#[from] outrigger_metrics::Error),
    #[error(transparent)]
    Thread(#[from] tokio::task::JoinError),
    #[error("the page that it is translated from could not be made")]
    Source,
}

/// When the latest attempt to make a page began, and the page; `None` if it failed.
type Latest = (Instant, Option<Bytes>);

/// One page. A task of its own makes it, so that a request whose client disconnects takes no work from the others.
#[derive(Debug)]
pub struct Page {
    wanted: Notify,
    latest: watch::Sender<Option<Latest>>,
}

impl Page {
    /// Starts the task. Needs a tokio runtime.
    pub fn start<F, Made>(make: F) -> Arc<Self>
    where
        F: Fn() -> Made + Send + 'static,
        Made: Future<Output = Result<Bytes, NoPage>> + Send,
    {
        let page = Arc::new(Self { wanted: Notify::new(), latest: watch::Sender::new(None) });
        let this = Arc::clone(&page);
        tokio::spawn(async move {
            loop {
                this.wanted.notified().await;
                let begun = clock::now();
                let made = make().await.inspect_err(|e| tracing::error!("the metrics cannot be rendered: {e}"));
                this.latest.send_replace(Some((begun, made.ok())));
            }
        });
        page
    }

    /// The page, made after this call. `None` if that failed; the log says why.
    pub async fn get(&self) -> Option<Bytes> {
        let arrived = clock::now();
        let mut latest = self.latest.subscribe();
        self.wanted.notify_one();
        let is_new = |latest: &Option<Latest>| latest.as_ref().is_some_and(|(begun, _)| *begun >= arrived);
        latest.wait_for(is_new).await.ok()?.as_ref()?.1.clone()
    }
}

/// Renders on a blocking thread, while the listener's thread accepts connections and responds to other requests.
///
/// # Errors
/// [`NoPage`]
pub async fn off_thread(
    make: impl FnOnce() -> Result<String, outrigger_metrics::Error> + Send + 'static,
) -> Result<Bytes, NoPage> {
    Ok(tokio::task::spawn_blocking(make).await??.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn concurrent_requests_share_a_page_that_is_not_older_than_they_are() {
        let made = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&made);
        let page = Page::start(move || {
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(number.to_string().into())
            }
        });
        let first = tokio::spawn({
            let page = Arc::clone(&page);
            async move { page.get().await }
        });
        while made.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        // These arrive while the first page is being made.
        let later: Vec<_> = (0..10)
            .map(|_| {
                let page = Arc::clone(&page);
                tokio::spawn(async move { page.get().await })
            })
            .collect();
        // One of their clients disconnects.
        later[0].abort();
        assert_eq!(first.await.unwrap().unwrap(), "1");
        for one in later.into_iter().skip(1) {
            assert_eq!(one.await.unwrap().unwrap(), "2");
        }
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }
}
