//! Splits CSV or TSV text into records, quoting as in RFC 4180. Only `delimited` uses it. It is written by hand because
//! three things are needed that the csv crate does not tell: the physical line of a record after CRLF or blank lines, a quote
//! that is never closed (which would swallow rows in silence), and an end to a record that grows without bound. On all other
//! input it agrees with that crate, which a test checks.

use std::io::{self, BufRead};

/// One record: its cells lie one after another in one buffer that is used again.
#[derive(Default)]
pub(crate) struct Cells {
    /// Physical line on which the record starts, from 1.
    pub line: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    fn size(&self) -> usize {
        // Empty cells cost memory too.
        self.bytes.len() + self.ends.len()
    }
}

/// How reading a record ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Record,
    End,
    /// The text ends inside quotes.
    OpenQuote,
    /// The record is larger than allowed; the rest of the file cannot be told apart from it.
    TooLong,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    RecordStart,
    CellStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted cell: it closes the cell, or the next one makes a quote of the two.
    QuoteInQuoted,
}

/// Reads records one after another.
pub(crate) struct RecordSplitter<R> {
    text: R,
    delimiter: u8,
    most_bytes: usize,
    line: u64,
    after_cr: bool,
}

impl<R: BufRead> RecordSplitter<R> {
    pub fn new(text: R, delimiter: u8, most_bytes: u64) -> Self {
        Self { text, delimiter, most_bytes: usize::try_from(most_bytes).unwrap_or(usize::MAX), line: 1, after_cr: false }
    }

    /// Reads the next record into `cells`. Blank lines are passed over.
    pub fn read(&mut self, cells: &mut Cells) -> io::Result<Outcome> {
        cells.bytes.clear();
        cells.ends.clear();
        let mut state = State::RecordStart;
        loop {
            let input = self.text.fill_buf()?;
            if input.is_empty() {
                return Ok(match state {
                    State::RecordStart => Outcome::End,
                    State::Quoted => Outcome::OpenQuote,
                    State::CellStart | State::Plain | State::QuoteInQuoted => {
                        cells.ends.push(cells.bytes.len());
                        Outcome::Record
                    }
                });
            }
            let mut taken = 0;
            let mut ended = false;
            while taken < input.len() && !ended {
                if state == State::Quoted {
                    // Long quoted cells are the common case of text data: copy up to the next byte that matters.
                    let rest = &input[taken..];
                    let plain = rest.iter().position(|b| matches!(b, b'"' | b'\n' | b'\r'));
                    let plain = plain.unwrap_or(rest.len());
                    cells.bytes.extend_from_slice(&rest[..plain]);
                    taken += plain;
                    self.after_cr &= plain == 0;
                    if taken == input.len() {
                        break;
                    }
                }
                let byte = input[taken];
                taken += 1;
                let line = self.line;
                match byte {
                    b'\n' if self.after_cr => self.after_cr = false,
                    b'\n' | b'\r' => {
                        self.line += 1;
                        self.after_cr = byte == b'\r';
                    }
                    _ => self.after_cr = false,
                }
                if state == State::RecordStart && !matches!(byte, b'\n' | b'\r') {
                    cells.line = line;
                    state = State::CellStart;
                }
                state = match (state, byte) {
                    (State::RecordStart, _) => State::RecordStart,
                    (State::CellStart, b'"') => State::Quoted,
                    (State::Quoted, b'"') => State::QuoteInQuoted,
                    (State::QuoteInQuoted, b'"') => {
                        cells.bytes.push(b'"');
                        State::Quoted
                    }
                    (State::Quoted, _) => {
                        cells.bytes.push(byte);
                        State::Quoted
                    }
                    (_, byte) if byte == self.delimiter => {
                        cells.ends.push(cells.bytes.len());
                        State::CellStart
                    }
                    (_, b'\n' | b'\r') => {
                        cells.ends.push(cells.bytes.len());
                        ended = true;
                        State::RecordStart
                    }
                    (_, byte) => {
                        cells.bytes.push(byte);
                        State::Plain
                    }
                };
            }
            self.text.consume(taken);
            if cells.size() > self.most_bytes {
                return Ok(Outcome::TooLong);
            }
            if ended {
                return Ok(Outcome::Record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    /// A record: its line and its cells.
    type Split = (u64, Vec<Vec<u8>>);

    fn split(text: &[u8], buffer: usize) -> (Vec<Split>, Outcome) {
        let mut splitter = RecordSplitter::new(BufReader::with_capacity(buffer, text), b',', 1000);
        let mut cells = Cells::default();
        let mut records = Vec::new();
        loop {
            match splitter.read(&mut cells).unwrap() {
                Outcome::Record => {
                    records.push((cells.line, cells.iter().map(<[u8]>::to_vec).collect()));
                }
                outcome => return (records, outcome),
            }
        }
    }

    #[test]
    fn records_know_the_physical_line_on_which_they_start() {
        let text = b"a,b\r\n\r\n1,\"x\r\ny\"\r\n\n2,z\r3,\"\"\"q\"\"\"";
        for buffer in [1, 2, 3, 64] {
            let (records, outcome) = split(text, buffer);
            let lines: Vec<u64> = records.iter().map(|(line, _)| *line).collect();
            assert_eq!(lines, [1, 3, 6, 7]);
            assert_eq!(records[1].1, [b"1".to_vec(), b"x\r\ny".to_vec()]);
            assert_eq!(records[3].1[1], b"\"q\"");
            assert_eq!(outcome, Outcome::End);
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_is_told() {
        let (records, outcome) = split(b"a,b\nx,\"neg\ny,pos\n", 64);
        assert_eq!(records.len(), 1);
        assert_eq!(outcome, Outcome::OpenQuote);
    }

    #[test]
    fn a_record_stops_growing_at_the_limit() {
        let text = [b"a,b\n\"".as_slice(), &vec![b'x'; 5_000]].concat();
        assert_eq!(split(&text, 64).1, Outcome::TooLong);
        assert_eq!(split(&vec![b','; 5_000], 64).1, Outcome::TooLong);
    }

    proptest! {
        #[test]
        fn records_are_those_of_the_csv_crate(text in "[ab\",\r\n]{0,40}", buffer in 1usize..9) {
            let (records, outcome) = split(text.as_bytes(), buffer);
            prop_assume!(outcome == Outcome::End);
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .from_reader(text.as_bytes());
            let expected: Vec<Vec<Vec<u8>>> = reader
                .byte_records()
                .map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect())
                .collect();
            let found: Vec<Vec<Vec<u8>>> = records.into_iter().map(|(_, cells)| cells).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
