//! The connection to Redis: sends usage reports, and reads what the script returns.

use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::lease;
use outrigger_rules::sections::redis::RedisSettings;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, Pipeline, RedisError, Value};

use crate::limits::settling::ledger::Due;

/// The script that Redis runs for each key: [`lease::settle`], in microseconds of Redis's own clock, counted from 2025
/// on ([`EPOCH_S`]) so that a double holds fractions of them. Only effects are replicated (Redis 5 and later), so the
/// script may read the clock.
const SCRIPT: &str = r"
local interval, burst, debt = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ago, known, machines = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = (clock[1] - 1735689600) * 1000000 + clock[2]
if now > tonumber(ARGV[7]) then
  return redis.error_reply('LATE this usage report has expired')
end
local kept = redis.call('GET', KEYS[1])
local before = kept and tonumber(kept) or now + known
local since = math.min(math.max(before, now - ago), now + 2 * burst + machines * interval)
local tat = math.max(since + debt * interval, now)
if tat > now then
  redis.call('SET', KEYS[1], string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000))
elseif kept then
  redis.call('DEL', KEYS[1])
end
return math.ceil(tat - now)
";

/// The start of 2025, in seconds since 1970.
const EPOCH_S: u64 = 1_735_689_600;

/// Why Redis could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it cannot be reached: {0}")]
    Connect(RedisError),
    #[error("it did not respond within {}", outrigger_rules::units::Span(*.0))]
    Timeout(Duration),
    #[error("the connection was lost: {0}")]
    Closed(RedisError),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("its reply is not one of Redis: {0}")]
    Nonsense(String),
}

impl LinkError {
    /// Returns the metric label.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Closed(_) => "closed",
            Self::Refused(_) => "refused",
            Self::Nonsense(_) => "nonsense",
        }
    }

    fn of(error: RedisError, timeout: Duration, is_connecting: bool) -> Self {
        match error.kind() {
            _ if error.is_timeout() => Self::Timeout(timeout),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => Self::Nonsense(error.to_string()),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
                Self::Refused(error.to_string())
            }
            _ if is_connecting => Self::Connect(error),
            _ => Self::Closed(error),
        }
    }
}

/// A connection on which the script is loaded.
pub(super) struct Link {
    connection: MultiplexedConnection,
    script: String,
    timeout: Duration,
    /// Redis's clock in its last reply, and when the reply arrived.
    pub(super) clock: (u64, Instant),
}

impl Link {
    pub(super) async fn open(settings: &RedisSettings) -> Result<Self, LinkError> {
        let timeout = settings.timeout;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_pipeline_buffer_size(1);
        let opening = settings.client.get_multiplexed_async_connection_with_config(&config);
        // The library's own timeout does not include name resolution.
        let connection = tokio::time::timeout(timeout * 2, opening).await.map_err(|_| LinkError::Timeout(timeout))?;
        let connection = connection.map_err(|e| LinkError::of(e, timeout, true))?;
        let mut link = Self { connection, script: String::new(), timeout, clock: (0, clock::now()) };
        link.load().await?;
        link.give_sign().await?;
        link.settle(settings, &[Due::PROBE], 1).await?;
        Ok(link)
    }

    async fn load(&mut self) -> Result<(), LinkError> {
        let mut load = Pipeline::new();
        load.cmd("SCRIPT").arg("LOAD").arg(SCRIPT);
        match &self.send(&load, 1).await?[..] {
            [Value::BulkString(sha)] if sha.len() == 40 && sha.iter().all(u8::is_ascii_hexdigit) => {
                self.script = String::from_utf8_lossy(sha).into_owned();
                Ok(())
            }
            [Value::ServerError(e)] => Err(LinkError::Refused(e.to_string())),
            _ => Err(LinkError::Nonsense("no digest of a script".to_owned())),
        }
    }

    async fn send(&mut self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, LinkError> {
        let answers =
            tokio::time::timeout(self.timeout, self.connection.send_packed_commands(commands, 0, count)).await;
        let answers = answers.map_err(|_| LinkError::Timeout(self.timeout))?;
        let answers = answers.map_err(|e| LinkError::of(e, self.timeout, false))?;
        if answers.len() != count {
            return Err(LinkError::Nonsense(format!("{} replies to {count} commands", answers.len())));
        }
        Ok(answers)
    }

    /// Reads Redis's clock from a reply.
    fn heard(&mut self, clock: &Value) -> Result<(), LinkError> {
        let micros = match clock {
            Value::Array(parts) => match &parts[..] {
                [Value::BulkString(seconds), Value::BulkString(micros)] => {
                    number(seconds).zip(number(micros).filter(|micros| *micros < 1_000_000)).and_then(
                        |(seconds, micros)| seconds.checked_sub(EPOCH_S)?.checked_mul(1_000_000)?.checked_add(micros),
                    )
                }
                _ => None,
            },
            Value::ServerError(e) => return Err(LinkError::Refused(e.to_string())),
            _ => None,
        };
        let micros = micros.ok_or_else(|| LinkError::Nonsense("no time, or one before 2025".to_owned()))?;
        self.clock = (micros, clock::now());
        Ok(())
    }

    /// Returns until when a report is valid, in Redis's time. The network delay of the last reply is unknown, so a
    /// report is valid for twice the timeout.
    fn good_until(&self) -> u64 {
        let (clock, read_at) = self.clock;
        let ahead = clock::since(read_at).saturating_add(self.timeout * 2).as_micros();
        clock.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }

    /// Checks the connection.
    pub(super) async fn give_sign(&mut self) -> Result<(), LinkError> {
        let mut time = Pipeline::new();
        time.cmd("TIME");
        let answers = self.send(&time, 1).await?;
        answers.first().map_or(Ok(()), |clock| self.heard(clock))
    }

    /// How far ahead each arrival time is afterwards, in nanoseconds.
    pub(super) async fn settle(
        &mut self,
        settings: &RedisSettings,
        bills: &[Due],
        machines: u32,
    ) -> Result<Vec<u64>, LinkError> {
        let mut answers = self.send(&self.bills(settings, bills, machines), bills.len() + 1).await?;
        let is_unknown = |answer: &Value| matches!(answer, Value::ServerError(e) if e.code() == "NOSCRIPT");
        // Redis has lost its scripts (`SCRIPT FLUSH`), so it has applied no report.
        if answers[..bills.len()].iter().all(is_unknown) {
            self.load().await?;
            answers = self.send(&self.bills(settings, bills, machines), bills.len() + 1).await?;
        }
        self.heard(&answers[bills.len()])?;
        answers.iter().zip(bills).map(|(answer, due)| ahead(answer, due, machines)).collect()
    }

    fn bills(&self, settings: &RedisSettings, bills: &[Due], machines: u32) -> Pipeline {
        let micros = |ns: u64| format!("{}.{:03}", ns / 1000, ns % 1000);
        let good_until = self.good_until();
        let mut commands = Pipeline::with_capacity(bills.len() + 1);
        for due in bills {
            let [one, other] = due.name;
            commands
                .cmd("EVALSHA")
                .arg(&self.script)
                .arg(1)
                .arg(format!("{}:{one:016x}{other:016x}", settings.prefix))
                .arg(micros(due.quota.charge_ns(1)))
                .arg(micros(due.quota.burst_ns()))
                .arg(due.bill.debt)
                .arg(micros(due.bill.ago_ns))
                .arg(micros(due.bill.known_ns))
                .arg(machines)
                .arg(good_until);
        }
        commands.cmd("TIME");
        commands
    }
}

/// Parses a number that consists of digits only.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Parses one reply of the script. Rejects values that the script cannot return.
pub(super) fn ahead(answer: &Value, due: &Due, machines: u32) -> Result<u64, LinkError> {
    match answer {
        Value::Int(micros) => {
            let most = lease::furthest(due.quota, machines)
                .saturating_add(due.quota.charge_ns(due.bill.debt.unsigned_abs()))
                .saturating_add(1_000_000);
            let ns = u64::try_from(*micros).ok().and_then(|micros| micros.checked_mul(1000)).filter(|ns| *ns <= most);
            ns.ok_or_else(|| LinkError::Nonsense(format!("a quota that is full again in {micros} µs")))
        }
        Value::ServerError(e) => Err(LinkError::Refused(e.to_string())),
        _ => Err(LinkError::Nonsense("no number".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_policy::lease::UsageReport;
    use outrigger_policy::limiter::Quota;

    fn due(debt: i32) -> Due {
        let quota = Quota::from_parts(1_000_000_000, 10);
        Due { index: 0, name: [1, 2], quota, bill: UsageReport { debt, ..UsageReport::default() }, debt }
    }

    #[test]
    fn rejects_replies_that_the_script_cannot_give() {
        let read = |answer: Value| ahead(&answer, &due(3), 5);
        assert_eq!(read(Value::Int(0)).ok(), Some(0));
        assert_eq!(read(Value::Int(1_500_000)).ok(), Some(1_500_000_000));
        // Twice the burst, one for each of five Machines, and the report.
        assert!(read(Value::Int(28_000_000)).is_ok());
        for wrong in [
            Value::Int(-1),
            Value::Int(28_002_000),
            Value::Int(i64::MAX),
            Value::Nil,
            Value::Okay,
            Value::BulkString(b"1".to_vec()),
            Value::Array(vec![Value::Int(1)]),
        ] {
            assert_eq!(read(wrong.clone()).map_err(|e| e.kind()), Err("nonsense"), "{wrong:?}");
        }
    }
}
