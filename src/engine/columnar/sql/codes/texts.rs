//! The texts of one tag in one query, numbered as they come.

use std::{
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow_array::{
    Array, ArrayRef, StringArray, UInt32Array, builder::StringBuilder, cast::AsArray, types::Int32Type,
};
use arrow_schema::DataType;
use arrow_select::take::take;
use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

/// Texts that a [`Coder`] finds without asking for all: more than most tags have.
const KNOWN: usize = 16_384;

/// Every text once, whichever partition it was found in first.
#[derive(Debug)]
pub(in super::super) struct Texts(Mutex<Numbered>);

#[derive(Debug)]
struct Numbered {
    /// One behind the other, and where each ends.
    text: String,
    ends: Vec<usize>,
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
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
            share: MemoryConsumer::new("texts of a tag").register(pool),
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
        let Self { text: all, ends, numbers, hasher, .. } = self;
        let hash = hasher.hash_one(text);
        if let Some(code) = numbers.find(hash, |&code| text_at(all, ends, code) == Some(text)) {
            return Ok(*code);
        }
        let code = u32::try_from(ends.len())
            .map_err(|_| DataFusionError::ResourcesExhausted("a tag has too many values".into()))?;
        all.push_str(text);
        ends.push(all.len());
        let of = |&code: &u32| hasher.hash_one(text_at(all, ends, code).unwrap_or_default());
        numbers.insert_unique(hash, code, of);
        Ok(code)
    }

    /// Takes what has come to be held from the query's memory.
    fn account(&mut self) -> Result<()> {
        let ends = self.ends.capacity() * size_of::<usize>();
        self.share.try_resize(self.text.capacity() + ends + self.numbers.allocation_size())
    }
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
    /// The texts of the last batch that came in codes, and their numbers: those of a row group are the same.
    dictionary: Option<(ArrayRef, UInt32Array)>,
}

impl Coder {
    pub(in super::super) fn new(texts: &Arc<Texts>) -> Self {
        Self { texts: texts.clone(), known: HashMap::new(), dictionary: None }
    }

    /// Numbers in the place of text, or of a dictionary's codes.
    ///
    /// # Errors
    /// The query's memory is used up, or it is neither.
    pub(in super::super) fn numbers(&mut self, column: &ArrayRef) -> Result<ArrayRef> {
        if let Some(codes) = column.as_dictionary_opt::<Int32Type>() {
            let same = |(texts, _): &(ArrayRef, _)| texts.to_data().ptr_eq(&codes.values().to_data());
            let numbers = match self.dictionary.take().filter(same) {
                Some((_, numbers)) => numbers,
                None => self.of_texts(codes.values())?,
            };
            let taken = take(&numbers, codes.keys(), None)?;
            self.dictionary = Some((codes.values().clone(), numbers));
            return Ok(taken);
        }
        Ok(Arc::new(self.of_texts(column)?))
    }

    fn of_texts(&mut self, column: &ArrayRef) -> Result<UInt32Array> {
        if *column.data_type() != DataType::Utf8 {
            let why = format!("a tag comes as {}", column.data_type());
            return Err(DataFusionError::Internal(why));
        }
        let Self { texts, known, .. } = self;
        let mut all: Option<MutexGuard<'_, Numbered>> = None;
        let number = |text: Option<&str>| {
            let Some(text) = text else { return Ok(None) };
            if let Some(&code) = known.get(text) {
                return Ok(Some(code));
            }
            let code = all.get_or_insert_with(|| texts.lock()).number(text)?;
            if known.len() < KNOWN {
                known.insert(text.into(), code);
            }
            Ok::<_, DataFusionError>(Some(code))
        };
        let numbers = column.as_string::<i32>().iter().map(number).collect::<Result<UInt32Array>>()?;
        if let Some(mut all) = all {
            all.account()?;
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{DictionaryArray, types::UInt32Type};
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
        let long = "x".repeat(300 << 10);
        Coder::new(&texts).numbers(&text(&[Some(&long), Some(&long)])).unwrap();
        assert!(pool.reserved() >= long.len(), "{}", pool.reserved());
        let others: Vec<String> = (0..4).map(|n| format!("{n}{long}")).collect();
        let others: Vec<Option<&str>> = others.iter().map(|other| Some(other.as_str())).collect();
        let error = Coder::new(&texts).numbers(&text(&others)).unwrap_err();
        assert!(matches!(error, DataFusionError::ResourcesExhausted(_)), "{error}");
        drop(texts);
        assert_eq!(pool.reserved(), 0);
    }
}
