//! Where requests of the past come from: the traffic record.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use outrigger_policy::tier::Tier;
use outrigger_traffic::decode::{Dictionary, Reader, TrafficError};
use outrigger_traffic::files::{self, RecordFile};
use outrigger_traffic::request::RecordedRequest;

use crate::past::{Catalogue, Past, bounded_us, mode};

/// Why no request can be replayed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory of the record.
    #[error(
        "the traffic record in {directory} cannot be read: {source}; is `record = true` in [traffic]? Or read the audit log with --audit"
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// There are no requests.
    #[error("there are no requests of that time in {0}")]
    Empty(String),
    /// Another kind of source.
    #[error("{0}")]
    Other(String),
}

/// Past requests, which can be read several times.
pub trait Source {
    /// Calls `each` with all requests between two times (nanoseconds since 1970), roughly in the order in which they ended.
    ///
    /// # Errors
    /// They cannot be read at all. A part that cannot be read is left out, and a line of `notes` says so.
    fn each(
        &self,
        between: (u64, u64),
        catalogue: &mut Catalogue,
        notes: &mut Vec<String>,
        each: &mut dyn FnMut(&Past, &Catalogue),
    ) -> Result<(), SourceError>;

    /// The name in reports.
    fn name(&self) -> String;
}

/// The traffic record in a directory.
#[derive(Debug)]
pub struct RecordSource {
    directory: PathBuf,
}

impl RecordSource {
    /// The record in this directory.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }
}

impl Source for RecordSource {
    fn each(
        &self,
        (from, until): (u64, u64),
        catalogue: &mut Catalogue,
        notes: &mut Vec<String>,
        each: &mut dyn FnMut(&Past, &Catalogue),
    ) -> Result<(), SourceError> {
        let failed = |source| SourceError::Directory { directory: self.directory.clone(), source };
        let files = files::all(&self.directory).map_err(failed)?;
        for (at, file) in files.iter().enumerate() {
            // A file has the requests that ended before the next one was made.
            let ended = files.get(at + 1).map_or(u64::MAX, |next| next.begins_ns.saturating_add(NANOSECONDS));
            if ended < from {
                continue;
            }
            if let Err(error) = read(file, (from, until), catalogue, each) {
                notes.push(format!("the rest of {} is left out: {error}", file.path.display()));
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.directory.display().to_string()
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

/// The numbers in the catalogue of what a file's numbers stand for.
#[derive(Default)]
struct Numbers {
    shapes: Vec<Option<u32>>,
    names: Vec<Option<u16>>,
}

impl Numbers {
    #[inline]
    fn shape(&mut self, number: u32, file: &Dictionary, catalogue: &mut Catalogue) -> Option<u32> {
        let at = number as usize;
        if at >= self.shapes.len() {
            for shape in &file.shapes()[self.shapes.len()..] {
                let text = |number| file.text(number);
                let (method, host, path) = (text(shape.method), text(shape.host), text(shape.path));
                self.shapes.push(catalogue.shape(method, host, path, text(shape.route), text(shape.headers)));
            }
        }
        self.shapes.get(at).copied().flatten()
    }

    #[inline]
    fn name(&mut self, number: Option<u32>, file: &Dictionary, catalogue: &mut Catalogue) -> u16 {
        let Some(number) = number else { return 0 };
        let at = number as usize;
        if at >= self.names.len() {
            self.names.resize(at + 1, None);
        }
        *self.names[at].get_or_insert_with(|| catalogue.name_number(file.text(number)))
    }
}

fn read(
    file: &RecordFile,
    (from, until): (u64, u64),
    catalogue: &mut Catalogue,
    each: &mut dyn FnMut(&Past, &Catalogue),
) -> Result<(), TrafficError> {
    let mut numbers = Numbers::default();
    let Some(mut reader) = Reader::open(BufReader::with_capacity(256 << 10, File::open(&file.path)?))? else {
        return Ok(());
    };
    while reader.block(|request, file| {
        if (from..until).contains(&request.started_ns)
            && let Some(shape) = numbers.shape(request.shape, file, catalogue)
        {
            let reason = numbers.name(request.reason, file, catalogue);
            let limit = numbers.name(request.limit, file, catalogue);
            each(&past(request, shape, reason, limit), catalogue);
        }
    })? {}
    Ok(())
}

#[inline]
fn past(request: &RecordedRequest, shape: u32, reason: u16, limit: u16) -> Past {
    Past {
        at_ns: request.started_ns,
        client: request.client,
        address: request.address,
        shape,
        total_us: bounded_us(request.total_us),
        queued_us: bounded_us(request.queued_us),
        status: request.status,
        reason,
        limit,
        facts: request.facts,
        tier: Tier::ALL.get(usize::from(request.tier)).copied().unwrap_or_default(),
        kind: request.kind,
        admission: mode(request.admission),
        resilience: mode(request.resilience),
        ..Past::BLANK
    }
    .served_in(request.service_us)
}
