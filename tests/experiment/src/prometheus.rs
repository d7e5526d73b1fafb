//! A real Prometheus that scrapes the proxies and the platform's metrics, every second: Fly's 15 s, divided.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::task::spawn_blocking;
use xtask::error::While;
use xtask::{Error, Process, Program, Result, Tool, http, ports, wait};

use crate::PATIENCE;

/// Time limit for one query.
const QUERY: Duration = Duration::from_secs(5);

/// A running Prometheus.
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it. `platform` serves `/metrics` and `/targets`.
    pub async fn start(dir: &Path, platform: SocketAddr) -> Result<Self> {
        let dir = dir.to_owned();
        let starting = spawn_blocking(move || {
            let address = (Ipv4Addr::LOCALHOST, ports::free()?).into();
            let file = dir.join("prometheus.yml");
            fs::write(&file, configuration(platform)).while_(format_args!("writing {}", file.display()))?;
            let mut process = Program::new(Tool::Prometheus.get()?)
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
                .arg(format!("--web.listen-address={address}"))
                // Its default is 5 min.
                .arg("--query.lookback-delta=20s")
                .arg("--log.level=warn")
                .start("prometheus", &dir.join("prometheus.log"))?;
            let is_ready = || http::get(address, "/-/ready", PATIENCE).is_ok_and(|answer| answer.status == 200);
            process.ready(PATIENCE, is_ready)?;
            let prometheus = Self { _process: process, address };
            wait::until("metrics of the first Machines", PATIENCE, || {
                prometheus.ask_now("sum(outrigger_build_info) + sum(fly_instance_up)").is_ok()
            })?;
            Ok(prometheus)
        });
        starting.await.unwrap_or_else(|e| Err(Error::new(e)))
    }

    /// The value of an instant query: that of its first sample.
    ///
    /// # Errors
    /// There is none, or it is no finite number.
    pub async fn ask(&self, query: &str) -> Result<f64> {
        let (address, query) = (self.address, query.to_owned());
        spawn_blocking(move || ask(address, &query)).await.unwrap_or_else(|e| Err(Error::new(e)))
    }

    fn ask_now(&self, query: &str) -> Result<f64> {
        ask(self.address, query)
    }
}

fn ask(address: SocketAddr, query: &str) -> Result<f64> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = http::send("POST", address, "/api/v1/query", &form, &format!("query={encoded}"), QUERY)?;
    value(&answer.body).ok_or_else(|| Error::new(format_args!("no number from Prometheus: {}", answer.body)))
}

fn value(answer: &str) -> Option<f64> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let value: f64 = answer["data"]["result"].get(0)?["value"].get(1)?.as_str()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// The proxies' own endpoint, since the rules ask for nothing of the app, and one that hangs would delay `/metrics/all`.
fn configuration(platform: SocketAddr) -> String {
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
         scrape_configs:\n\
         - job_name: platform\n  honor_labels: true\n  static_configs: [{{targets: [\"{platform}\"]}}]\n\
         - job_name: outrigger\n  http_sd_configs: [{{url: \"http://{platform}/targets\", refresh_interval: 1s}}]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_first_finite_sample() {
        let answer = |result: &str| format!("{{\"data\":{{\"resultType\":\"vector\",\"result\":{result}}}}}");
        assert_eq!(value(&answer("[{\"metric\":{},\"value\":[1.5,\"3\"]}]")), Some(3.0));
        assert_eq!(value(&answer("[{\"metric\":{},\"value\":[1.5,\"NaN\"]}]")), None);
        assert_eq!(value(&answer("[]")), None);
        assert_eq!(value("busy"), None);
    }
}
