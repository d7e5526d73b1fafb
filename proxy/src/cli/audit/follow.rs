//! `outrigger audit follow`: new entries as JSON Lines, for a log shipper.
//!
//! An entry is printed once it is verified, and at least once: the position in `--state` is that of the last line that the
//! reader of the pipe has taken, or that is in the file.

use std::io::{self, IsTerminal, Stdout, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use outrigger_policy::audit::{Class, EventType, Outcome};
use outrigger_trail::entry::Entry;
use outrigger_trail::follow::{Batch, Follower, Position};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use serde_json::{Map, Value};

use super::act::{Act, record_first};
use super::database::Database;
use super::find::{Hit, Opener, class, with_revealed};
use super::{AuditError, By, Context, Place, ocsf, text};

/// How often new entries are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Written at once, in bytes: a pipe takes as much whole or not at all (PIPE_BUF), so no line is cut off.
const AT_ONCE: usize = 4096;
/// How often a reader is asked whether it has taken everything.
const TAKEN_EVERY: Duration = Duration::from_millis(2);

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Entries exactly as in the audit log.
    Jsonl,
    /// Events of the Open Cybersecurity Schema Framework.
    Ocsf,
}

/// Options of `outrigger audit follow`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    pub place: Place,
    /// Begin after this position: CHAIN/CLASS:NUMBER,…, start (the first entries that there are) or end (new entries only).
    #[arg(long, value_name = "POSITION", default_value = "start")]
    since: Since,
    /// Keep the position in this file, and continue after it; --since counts only if the file does not exist yet.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Only this class, such as data; may be given several times.
    #[arg(long, value_parser = class)]
    class: Vec<Class>,
    /// The output format.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    /// End at the last entry, do not wait for more.
    #[arg(long)]
    once: bool,
    /// Decrypt the actor's name and address.
    #[arg(long)]
    reveal: bool,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// Where to begin.
#[derive(Clone, Debug)]
enum Since {
    Start,
    End,
    Position(Position),
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "start" => Ok(Self::Start),
            "end" => Ok(Self::End),
            text => text.parse().map(Self::Position).map_err(|e| format!("{e}, or start, or end")),
        }
    }
}

/// Runs `outrigger audit follow`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let directory = context.directory()?;
    let kept = options.state.as_deref().map(read_state).transpose()?.flatten();
    let since = kept.map_or_else(|| options.since.clone(), Since::Position);
    let classes = if options.class.is_empty() { Class::ALL.to_vec() } else { options.class.clone() };
    let position = match &since {
        Since::Position(position) => Some(position),
        Since::Start | Since::End => None,
    };
    let mut follower = Follower::new(directory, context.keys()?.public(), &classes, position)?;
    if matches!(since, Since::End) {
        follower.skip()?;
    }
    // Classes that are not followed now keep their place.
    let mut at = position.cloned().unwrap_or_else(|| follower.position());
    let database = context.database()?;
    let mut details = Map::new();
    details.insert("since".to_owned(), position.map_or(Value::Null, |position| position.to_string().into()));
    details.insert("classes".to_owned(), classes.iter().map(|class| class.name()).collect());
    details.insert("revealed".to_owned(), options.reveal.into());
    let act = Act {
        event: EventType::AdminAction,
        action: "audit.follow",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details,
    };
    record_first(context, &act)?;
    let out = io::stdout();
    let kind = rustix::fs::fstat(&out).map(|found| FileType::from_raw_mode(found.st_mode)).ok();
    let mut out = Output { out, kind: kind.filter(|_| options.state.is_some()) };
    let mut is_kept = false;
    let mut has_missed = false;
    loop {
        let batches = follower.look()?;
        for batch in &batches {
            has_missed |= warn_of_missed(batch);
            if options.reveal || options.format == Format::Ocsf {
                out.write(converted(context, options, database.as_ref(), batch)?.as_bytes())?;
            } else {
                out.write(&batch.lines)?;
            }
            at.through.insert(batch.class, batch.through);
            if let Some(state) = &options.state {
                keep_state(state, &at).map_err(AuditError::file(state))?;
            }
        }
        if batches.is_empty() {
            // Also where classes without an entry begin: one that is deleted before the next start is missed then.
            let before = at.clone();
            at.through.extend(follower.position().through);
            if let Some(state) = options.state.as_ref().filter(|_| !is_kept || at != before) {
                keep_state(state, &at).map_err(AuditError::file(state))?;
                is_kept = true;
            }
            if options.once {
                return Ok(ExitCode::from(u8::from(has_missed)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn read_state(path: &Path) -> Result<Option<Position>, AuditError> {
    match std::fs::read_to_string(path) {
        Ok(text) => text
            .parse()
            .map(Some)
            .map_err(|e| AuditError::Refused(format!("{}: {e}; or remove it to begin anew", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuditError::File { path: path.to_owned(), source }),
    }
}

/// Replaces the file as a whole: after a crash it has the old position or the new one.
fn keep_state(path: &Path, at: &Position) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = std::fs::File::create(&name)?;
    writeln!(file, "{at}")?;
    file.sync_data()?;
    std::fs::rename(&name, path)
}

fn warn_of_missed(batch: &Batch) -> bool {
    let Some((first, last)) = batch.missed else { return false };
    // If standard error is closed, the exit code still says so.
    let _ = writeln!(
        io::stderr(),
        "outrigger audit: {}: entries {first} to {last} were deleted before they were followed (max_size or retention)",
        batch.class.name()
    );
    true
}

/// The lines in another format, or with their decrypted values, where the keys still exist.
fn converted(
    context: &Context,
    options: &Options,
    database: Option<&Database>,
    batch: &Batch,
) -> Result<String, AuditError> {
    let text = String::from_utf8_lossy(&batch.lines);
    let hits: Vec<Hit> = text.lines().map(Hit::of).collect();
    let opener = match options.reveal {
        true => Some(Opener::new(context, context.directory.as_deref(), database, &hits, None)?),
        false => None,
    };
    let line = |hit: &Hit| {
        let entry = Entry::parse(hit.line.as_bytes()).ok();
        let revealed = entry.as_ref().and_then(|entry| opener.as_ref()?.open(entry));
        let line = match (entry, options.format) {
            (Some(entry), Format::Ocsf) => ocsf::event(&entry, revealed.as_ref()).to_string(),
            _ => with_revealed(&hit.line, revealed.as_ref()),
        };
        text::safe_json(&line) + "\n"
    };
    Ok(hits.iter().map(line).collect())
}

/// Standard output.
struct Output {
    out: Stdout,
    /// Its type, if a position is kept. Writing to a pipe ends only once it is empty, because what is in it is lost with its
    /// reader, and writing to a file once it is on disk.
    kind: Option<FileType>,
}

impl Output {
    /// Writes whole lines, and waits until the reader has taken them.
    fn write(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        let written = match self.out.is_terminal() {
            true => self.write_lines(text::safe_lines(&String::from_utf8_lossy(lines)).as_bytes()),
            false => self.write_lines(lines),
        };
        written.map_err(AuditError::file(Path::new("standard output")))
    }

    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut rest = lines;
        while !rest.is_empty() {
            let most = rest.len().min(AT_ONCE);
            // As many whole lines as fit, at least one.
            let end = memchr::memrchr(b'\n', &rest[..most]).or_else(|| memchr::memchr(b'\n', rest));
            let (now, later) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            self.out.write_all(now)?;
            self.out.flush()?;
            rest = later;
        }
        match self.kind {
            Some(FileType::Fifo) => {
                while !self.is_taken()? {
                    std::thread::sleep(TAKEN_EVERY);
                }
            }
            Some(FileType::RegularFile) => rustix::fs::fdatasync(&self.out)?,
            _ => {}
        }
        Ok(())
    }

    fn is_taken(&self) -> io::Result<bool> {
        let Ok(1..) = rustix::io::ioctl_fionread(&self.out) else { return Ok(true) };
        let mut ends = [PollFd::new(&self.out, PollFlags::OUT)];
        poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if ends[0].revents().contains(PollFlags::ERR) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(false)
    }
}
