//! Which pages of the KV cache belong to whom: allocation, sharing of equal prefixes, and eviction by least use.
//!
//! A full page is known by a hash of everything before and in it, and of the adapter that computed it; the tokens themselves are
//! compared too, so that a collision cannot mix two texts (the block manager of nano-vllm, with the adapter added).

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use tunesmith_ops::paged::PAGE;

/// What computed a page: the base model alone, or an adapter by its number, which is never used twice.
pub type Owner = u64;

/// The contents of a full page.
struct Full {
    hash: u64,
    parent: u64,
    owner: Owner,
    tokens: [u32; PAGE],
}

#[derive(Default)]
struct Page {
    users: u32,
    full: Option<Full>,
    /// When it was last let go; orders eviction.
    released: u64,
}

/// Every page of the cache.
pub struct PagePool {
    pages: Vec<Page>,
    /// Pages that nobody uses and that hold nothing.
    empty: Vec<u32>,
    /// Pages that nobody uses and that hold a prefix: (time of release, page).
    idle: BTreeSet<(u64, u32)>,
    by_hash: HashMap<u64, u32>,
    clock: u64,
}

/// The pages of one sequence.
#[derive(Debug, Default)]
pub struct PageTable {
    /// In the order of the tokens.
    pub pages: Vec<u32>,
    /// How many of them are full and known by their hash.
    known: usize,
    /// The hash of the last of those.
    hash: u64,
}

impl PagePool {
    /// A pool of `pages` empty pages.
    pub fn new(pages: usize) -> Self {
        Self {
            pages: (0..pages).map(|_| Page::default()).collect(),
            empty: (0..pages as u32).rev().collect(),
            idle: BTreeSet::new(),
            by_hash: HashMap::new(),
            clock: 0,
        }
    }

    /// Number of all pages.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that could be had now.
    pub fn free(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// A table that shares the longest known prefix of `tokens`, and how many tokens that is: at most all but the last, since
    /// somebody has to compute the row that the next token is drawn from.
    pub fn share(&mut self, owner: Owner, tokens: &[u32]) -> (PageTable, usize) {
        let mut table = PageTable::default();
        for chunk in tokens[..tokens.len().saturating_sub(1)].as_chunks::<PAGE>().0 {
            let hash = hash(owner, table.hash, chunk);
            let Some(&page) = self.by_hash.get(&hash) else { break };
            let same =
                self.pages[page as usize].full.as_ref().is_some_and(|f| (f.owner, f.parent, &f.tokens) == (owner, table.hash, chunk));
            if !same {
                break;
            }
            self.take(page);
            table.pages.push(page);
            (table.hash, table.known) = (hash, table.known + 1);
        }
        let shared = table.known * PAGE;
        (table, shared)
    }

    /// Makes room for `tokens` tokens in all; false, and nothing changed, if there are not enough pages.
    pub fn reserve(&mut self, table: &mut PageTable, tokens: usize) -> bool {
        let missing = tokens.div_ceil(PAGE).saturating_sub(table.pages.len());
        if missing > self.free() {
            return false;
        }
        for _ in 0..missing {
            let Some(page) = self.empty.pop().or_else(|| self.evict()) else { return false };
            self.pages[page as usize].users = 1;
            table.pages.push(page);
        }
        true
    }

    /// Says that the first tokens of a sequence, `tokens`, are computed: full pages become known and can be shared.
    pub fn computed(&mut self, owner: Owner, table: &mut PageTable, tokens: &[u32]) {
        for (i, chunk) in tokens.as_chunks::<PAGE>().0.iter().enumerate().skip(table.known) {
            let page = table.pages[i];
            let (parent, hash) = (table.hash, hash(owner, table.hash, chunk));
            // Two sequences may compute the same page side by side; the first one is found from now on.
            self.by_hash.entry(hash).or_insert(page);
            self.pages[page as usize].full = Some(Full { hash, parent, owner, tokens: *chunk });
            (table.hash, table.known) = (hash, i + 1);
        }
    }

    /// Lets a sequence's pages go. Known ones stay until their room is needed.
    pub fn release(&mut self, table: &mut PageTable) {
        // The end of a prefix is given up before its beginning.
        for page in std::mem::take(&mut table.pages).into_iter().rev() {
            self.clock += 1;
            let entry = &mut self.pages[page as usize];
            entry.users -= 1;
            if entry.users > 0 {
                continue;
            }
            let found = entry.full.as_ref().is_some_and(|f| self.by_hash.get(&f.hash) == Some(&page));
            entry.released = self.clock;
            if found {
                self.idle.insert((self.clock, page));
            } else {
                entry.full = None;
                self.empty.push(page);
            }
        }
        *table = PageTable::default();
    }

    fn take(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.idle.remove(&(entry.released, page));
        }
        entry.users += 1;
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        if let Some(full) = self.pages[page as usize].full.take() {
            self.by_hash.remove(&full.hash);
        }
        Some(page)
    }
}

fn hash(owner: Owner, parent: u64, tokens: &[u32; PAGE]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (owner, parent, tokens).hash(&mut hasher);
    hasher.finish() | 1 // never the first page's parent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    fn filled(pool: &mut PagePool, owner: Owner, tokens: &[u32]) -> PageTable {
        let (mut table, _) = pool.share(owner, tokens);
        assert!(pool.reserve(&mut table, tokens.len()));
        pool.computed(owner, &mut table, tokens);
        table
    }

    #[test]
    fn equal_prefixes_share_pages_while_used_and_after() {
        let mut pool = PagePool::new(8);
        let mut first = filled(&mut pool, 1, &text(40));
        let (mut second, shared) = pool.share(1, &text(40));
        assert_eq!((shared, &second.pages[..]), (32, &first.pages[..2]));
        pool.release(&mut first);
        pool.release(&mut second);
        assert_eq!(pool.free(), 8);
        assert_eq!(pool.share(1, &text(40)).1, 32);
    }

    #[test]
    fn another_adapter_or_another_text_shares_nothing() {
        let mut pool = PagePool::new(8);
        let mut table = filled(&mut pool, 1, &text(40));
        assert_eq!(pool.share(2, &text(40)).1, 0);
        let mut other = text(40);
        other[3] = 99;
        assert_eq!(pool.share(1, &other).1, 0);
        pool.release(&mut table);
    }

    #[test]
    fn the_last_token_is_always_left_to_compute() {
        let mut pool = PagePool::new(8);
        let mut table = filled(&mut pool, 1, &text(32));
        pool.release(&mut table);
        assert_eq!(pool.share(1, &text(32)).1, 16);
    }

    #[test]
    fn a_full_pool_gives_nothing_and_takes_back_idle_pages_oldest_first() {
        let mut pool = PagePool::new(4);
        let mut a = filled(&mut pool, 1, &text(32));
        let b: Vec<u32> = (100..132).collect();
        let mut b_table = filled(&mut pool, 1, &b);
        let mut c = PageTable::default();
        assert!(!pool.reserve(&mut c, 16));
        assert!(c.pages.is_empty());
        pool.release(&mut a);
        pool.release(&mut b_table);
        assert!(pool.reserve(&mut c, 32));
        // What was let go first is gone; the later text is still known.
        let mut longer = b.clone();
        longer.push(1);
        assert_eq!(pool.share(1, &longer).1, 32);
        let mut gone = text(32);
        gone.push(1);
        assert_eq!(pool.share(1, &gone).1, 0);
    }
}
