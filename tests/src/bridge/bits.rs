//! Which of many numbers were seen, one bit each: millions of messages are checked in a few megabytes.

/// A set of numbers that begin near 0.
#[derive(Debug, Default, Clone)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Puts it in. False: it was there.
    pub(super) fn put(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many are here and not there.
    pub(super) fn beyond(&self, other: &Self) -> u64 {
        let there = other.0.iter().chain(std::iter::repeat(&0));
        self.0.iter().zip(there).map(|(here, there)| u64::from((here & !there).count_ones())).sum()
    }

    /// How many are this or larger.
    pub(super) fn from(&self, first: u64) -> u64 {
        let end = self.0.len() as u64 * 64;
        (first..end).filter(|&number| self.has(number)).count() as u64
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        (0..self.0.len() as u64 * 64).filter(|&number| self.has(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_there_once() {
        let mut bits = Bits::default();
        assert!(bits.put(3) && bits.put(64) && bits.put(200) && !bits.put(64));
        assert!(bits.has(3) && !bits.has(4) && !bits.has(9_999));
        assert_eq!((bits.count(), bits.from(64), bits.from(201)), (3, 2, 0));
        let mut other = Bits::default();
        other.put(64);
        assert_eq!((bits.beyond(&other), other.beyond(&bits)), (2, 0));
        assert_eq!(bits.numbers().collect::<Vec<_>>(), [3, 64, 200]);
    }
}
