//! The smallest possible Pingora proxy, as the baseline for Outrigger's own cost.
//!
//! Environment: `LISTEN` and `UPSTREAM` (`HOST:PORT`), `THREADS` (1), `STEAL` (`1`: Tokio's work stealing, `0`: a runtime
//! for each thread), `L4READ` (read buffer of a client connection in bytes; Pingora's own when unset).

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::prelude::HttpPeer;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::{Opt, ServerConf};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() -> ExitCode {
    match settings() {
        Ok((conf, listen, upstream)) => serve(conf, &listen, upstream),
        Err(problem) => {
            // If standard error is closed, the message is lost.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("bare-pingora: {problem}\n"));
            ExitCode::FAILURE
        }
    }
}

fn settings() -> Result<(ServerConf, String, SocketAddr), String> {
    let required = |name: &str| std::env::var(name).map_err(|_| format!("set {name} to HOST:PORT"));
    let upstream = required("UPSTREAM")?.parse().map_err(|e| format!("UPSTREAM: {e}"))?;
    let threads = std::env::var("THREADS").map_or(Ok(1), |n| n.parse()).map_err(|e| format!("THREADS: {e}"))?;
    let work_stealing = std::env::var("STEAL").map_or(true, |steal| steal != "0");
    let conf = ServerConf { threads, work_stealing, upstream_keepalive_pool_size: 256, ..ServerConf::default() };
    Ok((conf, required("LISTEN")?, upstream))
}

fn serve(conf: ServerConf, listen: &str, upstream: SocketAddr) -> ExitCode {
    let mut server = Server::new_with_opt_and_conf(None::<Opt>, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), Bare { upstream });
    let read_bytes = std::env::var("L4READ").ok().and_then(|bytes| bytes.parse().ok());
    match read_bytes {
        Some(bytes) => service.add_listener(
            pingora::listeners::ListenerConfig::tcp(listen)
                .l4_buffer(pingora::listeners::L4BufferSettings::new(bytes, 1460)),
        ),
        None => service.add_tcp(listen),
    }
    server.add_service(service);
    server.run_forever()
}
