//! Looking up ids: which days may contain one. And the files of a month, which make it fast for many days.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{Datelike, NaiveDate};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::blocks::VerifiedObject;
use crate::columns::SCHEMA_VERSION;
use crate::error::{Error, Result};
use crate::ids::{FanOut, IdKind, Source, digest, merge};
use crate::listing::{IDS, token};
use crate::manifest::{StoredObject, parse, seal};
use crate::store::Created;
use crate::upload::Upload;

/// Lookups at once.
const LOOKUPS: usize = 8;

/// A month, as the key of a cache.
fn month_of(day: NaiveDate) -> (i32, u32) {
    (day.year(), day.month())
}

/// The manifest of a month's file of digests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MonthManifest {
    schema_version: u32,
    /// The first day of the month.
    month: NaiveDate,
    number: u32,
    ids: StoredObject,
    /// The days in the file, with their revisions.
    covers: Vec<(NaiveDate, u32)>,
}

impl MonthManifest {
    /// Refuses a manifest that contradicts itself, as [`crate::Manifest`] does.
    fn check(&self, month: (i32, u32), number: u32) -> Result<(), String> {
        let is_of_month = month_of(self.month) == month && self.number == number;
        let days: HashSet<NaiveDate> = self.covers.iter().map(|(day, _)| *day).collect();
        if !is_of_month || days.len() != self.covers.len() || days.into_iter().any(|day| month_of(day) != month) {
            return Err("it is the manifest of another month, or has days of one".to_owned());
        }
        let prefix = format!("{IDS}/{:04}-{:02}-", month.0, month.1);
        let name = self.ids.path.strip_prefix(&prefix).unwrap_or_default();
        if name.contains('/') || !name.ends_with(".ids") {
            return Err(format!("{:?} is not the name of the month's digests", self.ids.path));
        }
        self.ids.check()
    }
}

/// The newest file of a month, if there is one.
#[derive(Debug)]
pub(crate) struct MonthIndex {
    covers: HashSet<(NaiveDate, u32)>,
    ids: Option<VerifiedObject>,
}

impl Archive {
    /// Which of these days, given with their revisions, may contain an id. Days without the id are missing from the
    /// answer, except for one in about 10^12 by chance, and except for days whose file of digests is damaged. The
    /// order is that of `days`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or any error about a manifest.
    pub async fn find(&self, kind: IdKind, value: &str, days: &[(NaiveDate, u32)]) -> Result<Vec<NaiveDate>> {
        if value.is_empty() {
            return Ok(days.iter().map(|(day, _)| *day).collect());
        }
        let digest = digest(kind, value);
        let mut months: BTreeMap<(i32, u32), Vec<(NaiveDate, u32)>> = BTreeMap::new();
        for day in days {
            months.entry(month_of(day.0)).or_default().push(*day);
        }
        let found = stream::iter(months).map(|(month, days)| self.find_in_month(month, days, digest));
        let found: HashSet<NaiveDate> = found.buffer_unordered(LOOKUPS).try_concat().await?;
        Ok(days.iter().map(|(day, _)| *day).filter(|day| found.contains(day)).collect())
    }

    async fn find_in_month(
        &self,
        month: (i32, u32),
        days: Vec<(NaiveDate, u32)>,
        digest: u64,
    ) -> Result<HashSet<NaiveDate>> {
        let index = if days.len() > 1 { Some(self.month_index(month).await?) } else { None };
        let (mut found, mut remaining) = (HashSet::new(), days);
        if let Some(index) = &index
            && let Some(object) = &index.ids
        {
            let (covered, rest): (Vec<_>, Vec<_>) = remaining.iter().partition(|day| index.covers.contains(day));
            match self.days_in(object, digest).await {
                Ok(numbers) => {
                    let has = |day: &NaiveDate| numbers.iter().any(|number| u32::from(*number) == day.day());
                    found.extend(covered.into_iter().map(|(day, _)| day).filter(has));
                    remaining = rest;
                }
                Err(Error::Damaged { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let in_days = stream::iter(remaining).map(|(day, revision)| async move {
            Ok::<_, Error>(self.is_in_day(day, revision, digest).await?.then_some(day))
        });
        let in_days: Vec<Option<NaiveDate>> = in_days.buffer_unordered(LOOKUPS).try_collect().await?;
        found.extend(in_days.into_iter().flatten());
        Ok(found)
    }

    async fn is_in_day(&self, day: NaiveDate, revision: u32, digest: u64) -> Result<bool> {
        let manifest = self.manifest_from(day, revision).await?;
        let object = VerifiedObject::from(&manifest.ids);
        let found = async { self.fan_out(&object).await?.contains(&self.inner.reader, &object, digest).await };
        match found.await {
            // Without its digests, any day may contain the id.
            Err(Error::Damaged { .. }) => Ok(true),
            other => other,
        }
    }

    async fn days_in(&self, object: &VerifiedObject, digest: u64) -> Result<Vec<u8>> {
        self.fan_out(object).await?.days(&self.inner.reader, object, digest).await
    }

    async fn fan_out(&self, object: &VerifiedObject) -> Result<Arc<FanOut>> {
        if let Some(table) = self.inner.fan_outs.get(object.path()) {
            return Ok(table);
        }
        let table = Arc::new(FanOut::read(&self.inner.reader, object).await?);
        self.inner.fan_outs.insert(Arc::clone(object.path()), Arc::clone(&table));
        Ok(table)
    }

    async fn month_index(&self, month: (i32, u32)) -> Result<Arc<MonthIndex>> {
        if let Some(index) = self.inner.months.get(&month) {
            return Ok(index);
        }
        let newest = match self.month_numbers(month).await?.last() {
            Some(number) => self.month_manifest(month, *number).await,
            None => Ok(None),
        };
        let index = match newest {
            Ok(Some(manifest)) => {
                let ids = VerifiedObject::from(&manifest.ids);
                MonthIndex { covers: manifest.covers.into_iter().collect(), ids: Some(ids) }
            }
            Ok(None) | Err(Error::Damaged { .. } | Error::NotFound { .. } | Error::Schema { .. }) => {
                MonthIndex { covers: HashSet::new(), ids: None }
            }
            Err(error) => return Err(error),
        };
        let index = Arc::new(index);
        self.inner.months.insert(month, Arc::clone(&index));
        Ok(index)
    }

    /// The numbers of a month's manifests, ascending.
    async fn month_numbers(&self, (year, month): (i32, u32)) -> Result<Vec<u32>> {
        let prefix = format!("{IDS}/{year:04}-{month:02}-");
        let listed = self.inner.store.list(IDS).await?;
        let names = listed.iter().filter_map(|object| object.path.strip_prefix(&prefix)?.strip_suffix(".json"));
        // A number that is written in another way names another object.
        let number = |name: &str| name.parse().ok().filter(|number: &u32| format!("{number:05}") == name);
        let mut numbers: Vec<u32> = names.filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn month_manifest(&self, month: (i32, u32), number: u32) -> Result<Option<MonthManifest>> {
        let path = month_path(month, number);
        let text = self.sealed(&path).await?;
        let manifest: MonthManifest = parse(&path, &text)?;
        manifest.check(month, number).map_err(|reason| Error::schema(path, reason))?;
        Ok(Some(manifest))
    }

    /// Merges the digests of a month's days into one file, so that a lookup over many days reads few objects. Does
    /// nothing if the newest file has all days of the month in their newest revisions. `month` is any day of it.
    ///
    /// # Errors
    /// Any [`Error`] about the files of the days, or [`Error::Exists`] if another process compacts the same month.
    pub async fn compact_month(&self, month: NaiveDate) -> Result<()> {
        let key = month_of(month);
        let mut days = self.days().await?;
        days.retain(|(day, _)| month_of(*day) == key);
        self.compact(key, days).await.map(drop)
    }

    /// Compacts a month with these days. Returns whether that was needed.
    async fn compact(&self, key: (i32, u32), days: Vec<(NaiveDate, u32)>) -> Result<bool> {
        let Some((month, _)) = days.first().copied() else { return Ok(false) };
        let numbers = self.month_numbers(key).await?;
        let newest = numbers.last().copied().unwrap_or_default();
        if newest > 0 {
            match self.month_manifest(key, newest).await {
                Ok(Some(manifest)) if manifest.covers == days => return Ok(false),
                Ok(_) | Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(number) = newest.checked_add(1) else {
            return Err(Error::schema(month_path(key, newest), "no number can follow it"));
        };
        self.write_month(month, number, days).await?;
        self.inner.months.invalidate(&key);
        self.remove_months(key, number).await?;
        Ok(true)
    }

    /// [Compacts](Self::compact_month) the months up to `through`, a day that is their last one or later, whose newest file does
    /// not have all days in their newest revisions. Returns the number of months that it wrote. A month with an error does
    /// not keep the others from being compacted; the first error is returned at the end.
    ///
    /// # Errors
    /// Any [`Error`] about the files of the days.
    pub async fn compact_months(&self, through: NaiveDate) -> Result<usize> {
        let end = through.succ_opt().map_or((i32::MAX, 0), month_of);
        let mut months: BTreeMap<(i32, u32), Vec<(NaiveDate, u32)>> = BTreeMap::new();
        for (day, revision) in self.days().await? {
            months.entry(month_of(day)).or_default().push((day, revision));
        }
        months.retain(|month, _| *month < end);
        let (mut written, mut first_error) = (0, None);
        for (month, days) in months {
            match self.compact(month, days).await {
                Ok(true) => written += 1,
                // Another process has just done it.
                Ok(false) | Err(Error::Exists { .. }) => {}
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(written), Err)
    }

    async fn write_month(&self, month: NaiveDate, number: u32, covers: Vec<(NaiveDate, u32)>) -> Result<()> {
        let mut sources = Vec::new();
        for (day, revision) in &covers {
            let manifest = self.manifest_at(*day, *revision).await?;
            let number = u8::try_from(day.day()).ok();
            sources.push(Source::of_object(&self.inner.reader, &manifest.ids, number).await?);
        }
        let key = month_of(month);
        let path = format!("{IDS}/{:04}-{:02}-{number:05}-{}.ids", key.0, key.1, token());
        let (ids, _) = merge(sources, Upload::new(self.inner.store.clone(), path)).await?;
        let first = month.with_day(1).unwrap_or(month);
        let manifest = MonthManifest { schema_version: SCHEMA_VERSION, month: first, number, ids, covers };
        match self.inner.store.create(&month_path(key, number), Bytes::from(seal(&manifest)?)).await? {
            Created::Yes => Ok(()),
            Created::Exists => {
                self.inner.store.delete(&manifest.ids.path).await?;
                Err(Error::Exists { day: first, revision: number })
            }
        }
    }

    /// Deletes a month's files with a number below `newest`.
    async fn remove_months(&self, (year, month): (i32, u32), newest: u32) -> Result<()> {
        let prefix = format!("{IDS}/{year:04}-{month:02}-");
        for object in self.inner.store.list(IDS).await? {
            // A month's name has five digits or more here, a day's two.
            let name = object.path.strip_prefix(&prefix).map(|name| name.split(['-', '.']).next().unwrap_or_default());
            let number = name.filter(|name| name.len() >= 5).and_then(|name| name.parse::<u32>().ok());
            if number.is_some_and(|number| number < newest) {
                self.inner.store.delete(&object.path).await?;
            }
        }
        Ok(())
    }
}

fn month_path((year, month): (i32, u32), number: u32) -> String {
    format!("{IDS}/{year:04}-{month:02}-{number:05}.json")
}
