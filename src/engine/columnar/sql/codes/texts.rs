//! The texts of one tag in one query, numbered as they come.

use std::{
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow_array::{
    Array, ArrayRef, DictionaryArray, StringArray, UInt32Array, builder::StringBuilder, cast::AsArray,
    types::Int32Type,
};
use arrow_schema::DataType;
use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

/// Texts that a [`Coder`] finds without asking for all: more than most tags have.
const KNOWN: usize = 16_384;
/// Bytes that one of them takes besides its own.
const KNOWN_BYTES: usize = 64;
/// A code of a dictionary that no row had so far.
const UNKNOWN: u32 = u32::MAX;

/// Every text once, whichever partition it was found in first.
#[derive(Debug)]
pub(in super::super) struct Texts(Mutex<Numbered>);

#[derive(Debug)]
struct Numbered {
    /// One behind the other, and where each ends.
    text: String,
    ends: Vec<usize>,
    numbers: HashTable<u32>,
    /// Seeded anew in each process: whoever writes tags does not know it.
    hasher: DefaultHashBuilder,
    pool: Arc<dyn MemoryPool>,
    /// Of the query's memory.
    share: MemoryReservation,
}

impl Texts {
    pub(super) fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        Self(Mutex::new(Numbered {
            text: String::new(),
            ends: Vec::new(),
            numbers: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            pool: pool.clone(),
            share: reserve(pool),
        }))
    }

    /// What these numbers stand for.
    ///
    /// # Errors
    /// One is of another query.
    pub(super) fn texts(&self, codes: &UInt32Array) -> Result<StringArray> {
        let numbered = self.lock();
        let mut texts = StringBuilder::with_capacity(codes.len(), 0);
        for code in codes {
            texts.append_option(code.map(|code| numbered.text(code)).transpose()?);
        }
        Ok(texts.finish())
    }

    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbered {
    fn text(&self, code: u32) -> Result<&str> {
        text_at(&self.text, &self.ends, code)
            .ok_or_else(|| DataFusionError::Internal(format!("no tag has the number {code}")))
    }

    fn number(&mut self, text: &str) -> Result<u32> {
        let Self { text: all, ends, numbers, hasher, share, .. } = self;
        let hash = hasher.hash_one(text);
        if let Some(code) = numbers.find(hash, |&code| text_at(all, ends, code) == Some(text)) {
            return Ok(*code);
        }
        let code = u32::try_from(ends.len()).ok().filter(|code| *code != UNKNOWN);
        let code =
            code.ok_or_else(|| DataFusionError::ResourcesExhausted("a tag has too many values".into()))?;
        // What holds them doubles when it is full.
        share.try_grow(2 * (text.len() + size_of::<usize>() + 2 * size_of::<u32>()))?;
        all.push_str(text);
        ends.push(all.len());
        let of = |&code: &u32| hasher.hash_one(text_at(all, ends, code).unwrap_or_default());
        numbers.insert_unique(hash, code, of);
        Ok(code)
    }
}

fn reserve(pool: &Arc<dyn MemoryPool>) -> MemoryReservation {
    MemoryConsumer::new("texts of a tag").register(pool)
}

fn text_at<'a>(all: &'a str, ends: &[usize], code: u32) -> Option<&'a str> {
    let at = code as usize;
    let start = at.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied())?;
    all.get(start..*ends.get(at)?)
}

/// Makes numbers of the tag's columns in one partition.
pub(in super::super) struct Coder {
    texts: Arc<Texts>,
    /// Some of them, found without the lock.
    known: HashMap<Box<str>, u32>,
    share: MemoryReservation,
    /// The texts of the last batch that came in codes, those of a row group are the same, and the number of
    /// each that a row had.
    dictionary: Option<(ArrayRef, Vec<u32>)>,
}

impl Coder {
    pub(in super::super) fn new(texts: &Arc<Texts>) -> Self {
        let share = reserve(&texts.lock().pool);
        Self { texts: texts.clone(), known: HashMap::new(), share, dictionary: None }
    }

    /// Numbers in the place of text, or of a dictionary's codes.
    ///
    /// # Errors
    /// The query's memory is used up, or it is neither.
    pub(in super::super) fn numbers(&mut self, column: &ArrayRef) -> Result<ArrayRef> {
        Ok(Arc::new(match column.data_type() {
            DataType::Utf8 => self.of_texts(column.as_string())?,
            DataType::Dictionary(key, text) if **key == DataType::Int32 && **text == DataType::Utf8 => {
                self.of_codes(column.as_dictionary())?
            }
            other => return Err(DataFusionError::Internal(format!("a tag comes as {other}"))),
        }))
    }

    fn of_codes(&mut self, codes: &DictionaryArray<Int32Type>) -> Result<UInt32Array> {
        let same = |(texts, _): &(ArrayRef, _)| texts.to_data().ptr_eq(&codes.values().to_data());
        let known = self.dictionary.take().filter(same).map(|(_, numbers)| numbers);
        let mut numbers = known.unwrap_or_else(|| vec![UNKNOWN; codes.values().len()]);
        let texts = codes.values().as_string::<i32>();
        // Those alone that rows have: a dictionary is one of a row group, of which most may be left out.
        let new = |code: &usize| numbers.get(*code) == Some(&UNKNOWN) && texts.is_valid(*code);
        let had = codes.keys().iter().flatten().filter_map(|code| code.try_into().ok());
        let mut missing: Vec<usize> = had.filter(new).collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            let mut all = self.texts.lock();
            for code in missing {
                if let Some(number) = numbers.get_mut(code) {
                    *number = all.number(texts.value(code))?;
                }
            }
        }
        let number = |code: Option<i32>| {
            let number = numbers.get(usize::try_from(code?).ok()?).copied();
            number.filter(|number| *number != UNKNOWN)
        };
        let found = match codes.keys().nulls() {
            None if texts.null_count() == 0 => {
                // Every code has a number, so nothing is looked at but the codes.
                let number = |code: &i32| number(Some(*code)).unwrap_or(UNKNOWN);
                UInt32Array::from_iter_values(codes.keys().values().iter().map(number))
            }
            _ => codes.keys().iter().map(number).collect(),
        };
        self.dictionary = Some((codes.values().clone(), numbers));
        Ok(found)
    }

    fn of_texts(&mut self, texts: &StringArray) -> Result<UInt32Array> {
        let mut missing = Vec::new();
        let mut find = |(row, text): (usize, Option<&str>)| {
            let number = text.map(|text| self.known.get(text).copied());
            if number == Some(None) {
                missing.push(row);
            }
            number.map(|number| number.unwrap_or(UNKNOWN))
        };
        let mut numbers: Vec<Option<u32>> = texts.iter().enumerate().map(&mut find).collect();
        if !missing.is_empty() {
            let mut all = self.texts.lock();
            for &row in &missing {
                if let Some(number) = numbers.get_mut(row) {
                    *number = Some(all.number(texts.value(row))?);
                }
            }
        }
        for row in missing {
            let (text, Some(Some(number))) = (texts.value(row), numbers.get(row)) else { continue };
            // One that is not known is looked for where all are.
            let wanted = self.known.len() < KNOWN && !self.known.contains_key(text);
            if wanted && self.share.try_grow(text.len() + KNOWN_BYTES).is_ok() {
                self.known.insert(text.into(), *number);
            }
        }
        Ok(numbers.into())
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::types::UInt32Type;
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    fn text(of: &[Option<&str>]) -> ArrayRef {
        Arc::new(of.iter().copied().collect::<StringArray>())
    }

    #[test]
    fn a_text_has_one_number_whoever_finds_it_first() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
        let texts = Arc::new(Texts::new(&pool));
        let (mut one, mut other) = (Coder::new(&texts), Coder::new(&texts));
        let as_text = |coder: &mut Coder, column: &ArrayRef| {
            let numbers = coder.numbers(column).unwrap();
            let again = texts.texts(numbers.as_primitive()).unwrap();
            (numbers, again)
        };
        let plain = text(&[Some("b"), None, Some(""), Some("größe"), Some("b")]);
        let (numbers, again) = as_text(&mut one, &plain);
        assert_eq!(&again, plain.as_string::<i32>());
        assert_eq!(numbers.as_primitive::<UInt32Type>().value(0), 0);
        // By the codes of two row groups, of which both have a null that another code stands for.
        for dictionary in [text(&[Some("größe"), None, Some("b")]), text(&[Some("c"), Some("b"), None])] {
            let codes = [Some(0), Some(1), None, Some(2), Some(0)].into_iter().collect();
            let codes: ArrayRef =
                Arc::new(DictionaryArray::<Int32Type>::try_new(codes, dictionary.clone()).unwrap());
            let (_, again) = as_text(&mut other, &codes);
            let text = arrow_cast::cast(&codes, &DataType::Utf8).unwrap();
            assert_eq!(&again, text.as_string::<i32>());
        }
        let (numbers, _) = as_text(&mut other, &text(&[Some("b"), Some("c")]));
        assert_eq!(numbers.as_primitive::<UInt32Type>().values(), &[0, 3]);
        assert!(texts.texts(&UInt32Array::from(vec![4])).is_err());
        assert!(one.numbers(&(Arc::new(UInt32Array::from(vec![1])) as ArrayRef)).is_err());
    }

    #[test]
    fn texts_take_the_memory_of_their_query() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
        let texts = Arc::new(Texts::new(&pool));
        let long = "x".repeat(200 << 10);
        Coder::new(&texts).numbers(&text(&[Some(&long), Some(&long)])).unwrap();
        assert!(pool.reserved() >= 2 * long.len(), "{}", pool.reserved());
        let others: Vec<String> = (0..4).map(|n| format!("{n}{long}")).collect();
        let others: Vec<Option<&str>> = others.iter().map(|other| Some(other.as_str())).collect();
        let error = Coder::new(&texts).numbers(&text(&others)).unwrap_err();
        assert!(matches!(error, DataFusionError::ResourcesExhausted(_)), "{error}");
        drop(texts);
        assert_eq!(pool.reserved(), 0);
    }
}
