//! What a failure means for the connection, for other requests on it, for the server, or for this process alone.

mod odd_greetings;
mod silent_connections;
mod timeouts;
mod too_many_dials;
mod too_much;
mod what_servers_say;

use std::future::Future;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::thread;

use prefork_cache::{Cache, stores};

use crate::conformance::current_thread;
use support::servers::{Kind, url_of};

/// Which API makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Blocking,
    Tokio,
}

pub(crate) const WAYS: [Way; 2] = [Way::Blocking, Way::Tokio];

impl Way {
    /// Makes many calls at once, from threads or from tasks of one runtime.
    fn at_once<T, F>(self, cache: &Cache, call: impl Fn(Cache) -> F + Clone + Send + 'static) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send,
    {
        match self {
            Way::Blocking => thread::scope(|scope| {
                let threads: Vec<_> = (0..16)
                    .map(|_| {
                        let (call, cache) = (call.clone(), cache.clone());
                        scope.spawn(move || outside_of_a_runtime(call(cache)))
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            }),
            Way::Tokio => current_thread().block_on(async {
                let mut tasks = Vec::new();
                for _ in 0..64 {
                    let (call, cache) = (call.clone(), cache.clone());
                    tasks.push(tokio::spawn(async move { call(cache).await }));
                }
                let mut outcomes = Vec::new();
                for task in tasks {
                    outcomes.push(task.await.unwrap());
                }
                outcomes
            }),
        }
    }
}

/// Runs a future whose operations block, outside a runtime.
pub(crate) fn outside_of_a_runtime<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("an operation suspends outside a runtime"),
    }
}

fn cache_at(kind: Kind, port: u16, options: &str) -> Cache {
    Cache::builder(stores::from_url(&url_of(kind, port, options)).unwrap()).build()
}

/// Starts a server that handles each connection with `handle`. Returns its port and a function that counts the
/// connections.
pub(crate) fn serve(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> (u16, impl Fn() -> usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let (handle, stream) = (handle.clone(), stream.unwrap());
            thread::spawn(move || handle(stream));
        }
    });
    (port, move || count.load(std::sync::atomic::Ordering::SeqCst))
}

/// Reads until the other side disconnects.
pub(crate) fn read_on(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}
