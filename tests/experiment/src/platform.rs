//! A stand-in for the part of Fly that fly-autoscaler's rules read: `fly_instance_*` of each started Machine, and the list of
//! Machines whose own metrics are scraped.
//!
//! A Machine's CPU is the share of its app's workers that are busy, since work is sleep here; its memory does not change.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use xtask::Result;
use xtask::error::While;

use crate::machines::Machines;
use crate::script::WORKERS;

/// The app's name in `config/autoscaler/fly-autoscaler.yml`.
const APP: &str = "outrigger";
/// Each Machine's memory, and what is free of it, in bytes.
const MEMORY: (u64, u64) = (1 << 30, 700 << 20);

/// The time that a Machine's workers have been busy since it was started, also across restarts of its app.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    began: Instant,
    /// By apps that have ended, and by the present one, in seconds.
    earlier: f64,
    present: f64,
}

impl Meter {
    pub fn new() -> Self {
        Self { began: Instant::now(), earlier: 0.0, present: 0.0 }
    }

    /// Takes the app's own count, which begins anew with it.
    pub fn read(&mut self, seconds: f64) {
        if seconds < self.present {
            self.earlier += self.present;
        }
        self.present = seconds;
    }

    /// Busy and idle seconds of all workers.
    fn seconds(&self) -> (f64, f64) {
        let busy = self.earlier + self.present;
        (busy, f64::max(f64::from(WORKERS) * self.began.elapsed().as_secs_f64() - busy, 0.0))
    }
}

/// Serves `/metrics` and `/targets` until the runtime ends; returns the address.
///
/// # Errors
/// It cannot listen.
pub async fn start(machines: Machines) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.while_("listening")?;
    let address = listener.local_addr().while_("listening")?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let machines = machines.clone();
            let service = service_fn(move |request| answer(machines.clone(), request));
            tokio::spawn(
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(address)
}

async fn answer(
    machines: Machines,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let (kind, body) = match request.uri().path() {
        "/metrics" => {
            machines.read_meters().await;
            ("text/plain; version=0.0.4", metrics(&machines.meters()))
        }
        "/targets" => ("application/json", targets(&machines.admins())),
        _ => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Ok(response)
}

fn metrics(machines: &[(String, Meter)]) -> String {
    let mut text = String::new();
    for (id, meter) in machines {
        let labels = format!("app=\"{APP}\",instance=\"{id}\",region=\"ams\",host=\"{id}\"");
        let (busy, idle) = meter.seconds();
        let _ = write!(
            text,
            "fly_instance_up{{{labels}}} 1\n\
             fly_instance_cpu{{{labels},cpu_id=\"0\",mode=\"user\"}} {busy}\n\
             fly_instance_cpu{{{labels},cpu_id=\"0\",mode=\"idle\"}} {idle}\n\
             fly_instance_memory_mem_total{{{labels}}} {}\n\
             fly_instance_memory_mem_available{{{labels}}} {}\n",
            MEMORY.0, MEMORY.1
        );
    }
    text
}

/// In the form of Prometheus' service discovery over HTTP, with the labels that Fly adds.
fn targets(machines: &[(String, SocketAddr)]) -> String {
    let target = |(id, admin): &(String, SocketAddr)| json!({"targets": [admin.to_string()], "labels": {"app": APP, "instance": id, "region": "ams", "host": id}});
    serde_json::Value::from_iter(machines.iter().map(target)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_goes_on_when_the_app_begins_anew() {
        let mut meter = Meter::new();
        for seconds in [1.0, 3.0, 0.5, 0.75] {
            meter.read(seconds);
        }
        assert_eq!(meter.seconds().0, 3.75);
    }

    #[test]
    fn each_machine_has_its_labels() {
        let address = "127.0.0.1:9".parse().unwrap();
        let labels = json!({"app": "outrigger", "instance": "m02", "region": "ams", "host": "m02"});
        let found: serde_json::Value = serde_json::from_str(&targets(&[("m02".to_owned(), address)])).unwrap();
        assert_eq!(found, json!([{"targets": ["127.0.0.1:9"], "labels": labels}]));
        let text = metrics(&[("m02".to_owned(), Meter::new())]);
        assert!(text.contains("fly_instance_up{app=\"outrigger\",instance=\"m02\",region=\"ams\",host=\"m02\"} 1\n"));
    }
}
