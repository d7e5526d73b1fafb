//! Each thing that an app may do with a request, and the proof in the end of its connection. Each connection has served a request before.

use std::future::Future;
use std::io::Read;
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixListener;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const REQUEST: &[u8] = &[b'r'; 1000];

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.unwrap() })
}

/// A connection that has served a request, and the app's end of it.
async fn tcp() -> (AppStream, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = AppStream::connect(&Target::Tcp(listener.local_addr().unwrap())).await.unwrap();
    let (mut app, _) = listener.accept().unwrap();
    assert!(stream.accepted().await);
    stream.begin();
    serve(&mut stream, &mut app).await;
    assert!(stream.may_prove(100, 60_000) && stream.will_prove());
    stream.begin();
    (stream, app)
}

async fn unix() -> (AppStream, std::os::unix::net::UnixStream) {
    let path = std::env::temp_dir().join(format!("outrigger-app-pool-{}-{:p}", std::process::id(), &REQUEST));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let mut stream = AppStream::connect(&Target::Unix(path.as_path().into())).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let (mut app, _) = listener.accept().unwrap();
    assert!(stream.accepted().await);
    stream.begin();
    serve(&mut stream, &mut app).await;
    assert!(stream.will_prove());
    stream.begin();
    (stream, app)
}

async fn serve(stream: &mut AppStream, app: &mut (impl Read + io::Write)) {
    stream.write_all(REQUEST).await.unwrap();
    app.read_exact(&mut [0; REQUEST.len()]).unwrap();
    app.write_all(b"response").unwrap();
    stream.read_exact(&mut [0; 8]).await.unwrap();
}

/// Sends a request, and returns whether its end proves that it was not read.
async fn proves(mut stream: AppStream, is_sent: impl FnOnce()) -> bool {
    let _ = stream.write_all(REQUEST).await;
    is_sent();
    let read = stream.read(&mut [0; 8]).await.map(|read| assert_eq!(read, 0)).map_err(|error| error.kind());
    stream.is_unread(read, true).await
}

fn abort(app: std::net::TcpStream) {
    let socket = socket2::Socket::from(app);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
}

#[test]
fn tcp_shows_what_was_not_read() {
    run(async {
        let (stream, app) = tcp().await;
        drop(app);
        assert!(proves(stream, || ()).await, "closed before the request came");

        let (stream, app) = tcp().await;
        assert!(proves(stream, || drop(app)).await, "closed after it came");

        let (stream, app) = tcp().await;
        abort(app);
        assert!(proves(stream, || ()).await, "aborted before it came");

        let (stream, app) = tcp().await;
        assert!(proves(stream, || abort(app)).await, "aborted after it came");

        let (stream, app) = tcp().await;
        app.shutdown(Shutdown::Write).unwrap();
        assert!(proves(stream, || ()).await, "no response can come");

        let (stream, app) = tcp().await;
        let close_in_two_steps = || {
            app.shutdown(Shutdown::Write).unwrap();
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                drop(app);
            });
        };
        assert!(proves(stream, close_in_two_steps).await, "its sending side closed after it came, then the rest");
    });
}

/// Other processes may reset as many connections as they like: the kernel tells of all of them.
#[test]
fn resets_of_other_connections_take_no_proof() {
    /// More than are remembered.
    const OTHERS: usize = 5000;
    run(async {
        let (stream, app) = tcp().await;
        let resets = || {
            drop(app);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            for _ in 0..OTHERS {
                let mut client = std::net::TcpStream::connect(address).unwrap();
                io::Write::write_all(&mut client, b"unread").unwrap();
                let (other, _) = listener.accept().unwrap();
                // Waits until it has the bytes.
                assert_eq!(other.peek(&mut [0; 6]).unwrap(), 6);
            }
        };
        assert!(proves(stream, resets).await);
    });
}

#[test]
fn tcp_shows_what_may_have_been_read() {
    run(async {
        let all = |mut app: &std::net::TcpStream| app.read_exact(&mut [0; REQUEST.len()]).unwrap();

        let (stream, app) = tcp().await;
        let read_and_close = || {
            all(&app);
            drop(app);
        };
        assert!(!proves(stream, read_and_close).await, "read and closed");

        let (stream, app) = tcp().await;
        let read_and_abort = || {
            all(&app);
            abort(app);
        };
        assert!(!proves(stream, read_and_abort).await, "read and aborted");

        let (stream, mut app) = tcp().await;
        let read_a_part = || {
            app.read_exact(&mut [0; 1]).unwrap();
            drop(app);
        };
        assert!(!proves(stream, read_a_part).await, "read in part");
    });
}

#[test]
fn a_connection_that_is_not_accepted_is_not_written_to() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = AppStream::connect(&Target::Tcp(listener.local_addr().unwrap())).await.unwrap();
        {
            let mut accepted = std::pin::pin!(stream.accepted());
            let early = std::future::poll_fn(|cx| Poll::Ready(accepted.as_mut().poll(cx))).await;
            assert!(early.is_pending(), "the connection is in the listener's queue");
            drop(listener);
            assert!(!accepted.await, "the app has stopped");
        }
        stream.begin();
        assert!(proves(stream, || ()).await);
    });
}

#[test]
fn an_app_that_accepts_late_gets_the_request_into_its_queue() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = AppStream::connect(&Target::Tcp(listener.local_addr().unwrap())).await.unwrap();
        let began = Instant::now();
        assert!(stream.accepted().await);
        assert!(began.elapsed() >= Duration::from_millis(100));
    });
}

#[test]
fn unix_sockets_show_the_same() {
    run(async {
        let (stream, app) = unix().await;
        drop(app);
        assert!(proves(stream, || ()).await, "closed before the request came");

        let (stream, app) = unix().await;
        assert!(proves(stream, || drop(app)).await, "closed after it came");

        let (stream, mut app) = unix().await;
        let read_and_close = || {
            app.read_exact(&mut [0; REQUEST.len()]).unwrap();
            drop(app);
        };
        assert!(!proves(stream, read_and_close).await, "read and closed");

        let (stream, app) = unix().await;
        let close_in_two_steps = || {
            app.shutdown(Shutdown::Write).unwrap();
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                drop(app);
            });
        };
        assert!(proves(stream, close_in_two_steps).await, "its sending side closed after it came, then the rest");

        let (stream, app) = unix().await;
        app.shutdown(Shutdown::Write).unwrap();
        assert!(!proves(stream, || ()).await, "it is still open, and may be read");
        drop(app);

        let (mut stream, app) = unix().await;
        stream.write_all(&REQUEST[..500]).await.unwrap();
        assert!(!proves(stream, || drop(app)).await, "the second piece was not read");
    });
}
