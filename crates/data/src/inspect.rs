//! Validates an uploaded file: reads every row once, lists what is wrong, or sums up what is there. The upload route calls it
//! on a blocking thread before the file is stored; a file that it refuses leaves nothing behind.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{DataError, LISTED_PROBLEMS, Problem};
use crate::limits::Limits;
use crate::rows::{Record, Row, rows};
use crate::summary::Summary;
use crate::tally::Tally;

/// Parses every row of a file that was uploaded as `filename`. All faulty rows are counted and the first are listed.
pub fn inspect(path: &Path, filename: &str, limits: &Limits) -> Result<Summary, DataError> {
    inspect_with(path, filename, limits, &mut |_| Vec::new())
}

/// The same with another look at each row that could be parsed: what `check` finds wrong counts like a fault of the format.
pub fn inspect_with(
    path: &Path,
    filename: &str,
    limits: &Limits,
    check: &mut dyn FnMut(&Row) -> Vec<Problem>,
) -> Result<Summary, DataError> {
    let mut reader = rows(path, filename, limits)?;
    let mut tally = Tally::new(reader.format());
    let mut faults = Faults::default();
    let mut any = false;
    loop {
        match reader.next_record() {
            Ok(Some(Record::Row(row))) => {
                any = true;
                tally.add(&row);
                let problems = check(&row);
                let total = problems.len() as u64;
                faults.add(problems, total);
            }
            Ok(Some(Record::Faulty(problems))) => {
                let total = problems.len() as u64;
                faults.add(problems, total);
            }
            Ok(None) => break,
            // A fault after which nothing can be read, such as a quote that is not closed, comes after those before it.
            Err(DataError::Problems { problems, total }) => {
                faults.add(problems, total);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if faults.total > 0 {
        return Err(DataError::Problems { problems: faults.listed, total: faults.total });
    }
    if !any {
        return Err(DataError::Empty);
    }
    let (format, gzip) = (reader.format(), reader.is_gzip());
    Ok(tally.finish(format, gzip, sha256_of(path)?))
}

#[derive(Default)]
struct Faults {
    listed: Vec<Problem>,
    total: u64,
}

impl Faults {
    fn add(&mut self, problems: Vec<Problem>, total: u64) {
        let room = LISTED_PROBLEMS - self.listed.len();
        self.listed.extend(problems.into_iter().take(room));
        self.total += total;
    }
}

fn sha256_of(path: &Path) -> Result<String, DataError> {
    let mut file = File::open(path).map_err(DataError::Io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).map_err(DataError::Io)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
