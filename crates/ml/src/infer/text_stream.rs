//! From tokens to text, piece by piece: no character is cut in two, and no part of a stop string gets out.
//!
//! Tokens are turned to bytes one by one, so a piece costs nothing but its own length, whatever came before.

/// What has become of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text that is certain by now; may be empty.
    Text(String),
    /// The rest of the text: a stop string follows it.
    Stopped(String),
}

/// Turns the bytes of an answer into text.
#[derive(Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// Bytes of a character that is not whole yet.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl TextStream {
    /// A stream that ends at the first of `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), ..Self::default() }
    }

    /// Takes a token's bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        self.bytes.extend_from_slice(bytes);
        self.decode();
        self.cut()
    }

    /// The answer has ended: what is left. The beginning of a character that did not come to its end is left out.
    pub fn finish(mut self) -> Piece {
        match self.cut() {
            Piece::Text(text) => Piece::Text(text + &self.held),
            stopped => stopped,
        }
    }

    /// Moves whole characters from `bytes` to `held`. What cannot become a character is replaced, as `from_utf8_lossy` does.
    fn decode(&mut self) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(error) => {
                    let (good, bad) = (error.valid_up_to(), error.error_len());
                    if bad.is_none() {
                        let rest = self.bytes.split_off(good);
                        self.held.push_str(&String::from_utf8_lossy(&self.bytes));
                        self.bytes = rest;
                        return;
                    }
                    let end = bad.map_or(self.bytes.len(), |n| good + n);
                    self.held.push_str(&String::from_utf8_lossy(&self.bytes[..good]));
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    self.bytes.drain(..end);
                }
            }
        }
    }

    /// Takes the certain part off `held`.
    fn cut(&mut self) -> Piece {
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return Piece::Stopped(std::mem::take(&mut self.held));
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut keep = 0;
        for (at, _) in self.held.char_indices().rev() {
            let tail = &self.held[at..];
            if tail.len() >= longest {
                break;
            }
            if self.stops.iter().any(|s| s.starts_with(tail)) {
                keep = tail.len();
            }
        }
        let rest = self.held.split_off(self.held.len() - keep);
        Piece::Text(std::mem::replace(&mut self.held, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of pieces of given bytes, and whether a stop string ended it.
    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            match stream.push(piece) {
                Piece::Text(text) => out.push(text),
                Piece::Stopped(text) => {
                    out.push(text);
                    return (out, true);
                }
            }
        }
        match stream.finish() {
            Piece::Text(text) => out.push(text),
            Piece::Stopped(text) => {
                out.push(text);
                return (out, true);
            }
        }
        (out, false)
    }

    #[test]
    fn a_character_over_several_tokens_comes_out_whole() {
        let llama = "🦙".as_bytes();
        let (out, _) = run(&[], &[b"a", &llama[..1], &llama[1..3], &llama[3..], b"b"]);
        assert_eq!(out, ["a", "", "", "🦙", "b", ""]);
    }

    #[test]
    fn broken_bytes_are_replaced_and_half_a_character_at_the_end_is_left_out() {
        let (out, _) = run(&[], &[b"a\xff", b"b\xf0\x9f", b"c", b"\xf0\x9f"]);
        assert_eq!(out.concat(), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_found_and_held_back() {
        assert_eq!(run(&["\n\n"], &[b"one\n", b"\ntwo"]), (vec!["one".into(), String::new()], true));
        assert_eq!(run(&["STOP"], &[b"go ST", b"O", b"P!"]), (vec!["go ".into(), String::new(), String::new()], true));
    }

    #[test]
    fn the_beginning_of_a_stop_string_at_the_end_is_not_lost() {
        assert_eq!(run(&["STOP"], &[b"go ST"]).0.concat(), "go ST");
        assert_eq!(run(&["STOP"], &[b"go ST", b"AY"]).0.concat(), "go STAY");
    }

    #[test]
    fn the_first_of_two_stop_strings_counts() {
        assert_eq!(run(&["bc", "ab"], &[b"xabc"]), (vec!["x".into()], true));
    }
}
