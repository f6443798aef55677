//! A map for few entries, of which there are many: sorted, in one allocation of just their size where it can be. A `BTreeMap` takes room for eleven at once,
//! which for a job's one entry of each kind is most of what the job takes. New keys that are the highest cost nothing more, others a move of those above.

/// Keys ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small<K, V>(Vec<(K, V)>);

impl<K, V> Default for Small<K, V> {
    fn default() -> Self {
        Small(Vec::new())
    }
}

#[allow(missing_docs)] // As those of a `BTreeMap`.
impl<K: Ord + Copy, V> Small<K, V> {
    fn at(&self, k: &K) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if last < k => Err(self.0.len()),
            _ => self.0.binary_search_by(|(key, _)| key.cmp(k)),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains_key(&self, k: &K) -> bool {
        self.at(k).is_ok()
    }

    pub fn get(&self, k: &K) -> Option<&V> {
        self.at(k).ok().map(|i| &self.0[i].1)
    }

    pub fn get_mut(&mut self, k: &K) -> Option<&mut V> {
        self.at(k).ok().map(|i| &mut self.0[i].1)
    }

    pub fn insert(&mut self, k: K, v: V) -> Option<V> {
        match self.at(&k) {
            Ok(i) => Some(std::mem::replace(&mut self.0[i].1, v)),
            Err(i) => {
                self.place(i, k, v);
                None
            }
        }
    }

    pub fn get_or_default(&mut self, k: K) -> &mut V
    where
        V: Default,
    {
        let i = self.at(&k).unwrap_or_else(|i| {
            self.place(i, k, V::default());
            i
        });
        &mut self.0[i].1
    }

    fn place(&mut self, i: usize, k: K, v: V) {
        if self.0.is_empty() {
            self.0.reserve_exact(1);
        }
        self.0.insert(i, (k, v));
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(k, v)| (&*k, v))
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.0.iter().map(|(k, _)| k)
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.iter().map(|(_, v)| v)
    }
}

impl<K: Ord + Copy, V> FromIterator<(K, V)> for Small<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(all: T) -> Self {
        let mut map = Small::default();
        all.into_iter().for_each(|(k, v)| _ = map.insert(k, v));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u32..40, 0u32..1_000, any::<bool>()), 0..80)) {
            let (mut small, mut map) = (Small::default(), BTreeMap::new());
            for (k, v, plain) in steps {
                if plain {
                    prop_assert_eq!(small.insert(k, v), map.insert(k, v));
                } else {
                    *small.get_or_default(k) += v;
                    *map.entry(k).or_default() += v;
                }
                prop_assert_eq!(small.get(&k), map.get(&k));
                prop_assert!(small.iter().eq(map.iter()) && small.keys().eq(map.keys()) && small.values().eq(map.values()));
                prop_assert_eq!((small.len(), small.contains_key(&(k + 1))), (map.len(), map.contains_key(&(k + 1))));
            }
            small.iter_mut().for_each(|(_, v)| *v += 1);
            map.values_mut().for_each(|v| *v += 1);
            prop_assert_eq!(small, map.into_iter().collect());
        }
    }
}
