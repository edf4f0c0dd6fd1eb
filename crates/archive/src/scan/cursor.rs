//! Cursors: the rows of one file in order, and the rows of a day, merged from its files.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::archive::Inner;
use crate::columns::{Column, OwnedRow};
use crate::error::Result;
use crate::manifest::{Manifest, Part};
use crate::part::PartFile;
use crate::scan::Plan;
use crate::scan::group::{CHUNK_BYTES, Group};
use crate::scan::prune::group_may_match;

/// The most rows that are read at once.
pub(super) const CHUNK: usize = 1_000;
/// The most row groups whose bloom filters are read at once.
const FILTERS: usize = 16;

/// The rows of a day, in order.
pub(super) struct DayCursor {
    parts: Vec<PartCursor>,
    plan: Arc<Plan>,
    /// Whether the day was archived with messages, responses and requests.
    bodies: bool,
}

impl DayCursor {
    pub(super) fn new(inner: Arc<Inner>, manifest: &Manifest, plan: Arc<Plan>) -> Self {
        let plan = if manifest.bodies { plan } else { Arc::new(plan.without_bodies()) };
        Self { parts: super::cursors(&inner, manifest, &plan), plan, bodies: manifest.bodies }
    }

    /// The next rows, [`CHUNK`] at most. None are left if there are none.
    pub(super) async fn next_rows(&mut self) -> Result<Vec<OwnedRow>> {
        let mut rows = self.next_stored_rows().await?;
        if let (false, Some(default)) = (self.bodies, &self.plan.query.missing_bodies) {
            for row in &mut rows {
                for column in [&mut row.messages, &mut row.response, &mut row.proxy_server_request] {
                    *column = Some(default.clone());
                }
            }
        }
        Ok(rows)
    }

    async fn next_stored_rows(&mut self) -> Result<Vec<OwnedRow>> {
        if let [only] = self.parts.as_mut_slice() {
            only.fill().await?;
            return Ok(only.ready.drain(..).collect());
        }
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < CHUNK
            && bytes < CHUNK_BYTES
            && let Some(row) = self.next_row().await?
        {
            bytes += row.as_row().bytes();
            rows.push(row);
        }
        Ok(rows)
    }

    async fn next_row(&mut self) -> Result<Option<OwnedRow>> {
        loop {
            // A file that was not read yet at this place may have rows from its bound on. It comes before a row of
            // the same time, because its own row may have the smaller id.
            let descending = self.plan.descending();
            let first = self.parts.iter_mut().min_by(|a, b| {
                let (a, b) = (a.place(), b.place());
                if descending {
                    b.time.cmp(&a.time).then_with(|| b.id_or_none_last().cmp(&a.id_or_none_last()))
                } else {
                    a.time.cmp(&b.time).then_with(|| a.id.cmp(&b.id))
                }
            });
            let Some(first) = first else { return Ok(None) };
            if let Some(row) = first.ready.pop_front() {
                first.bound = row.start_time;
                return Ok(Some(row));
            }
            first.fill().await?;
            self.parts.retain(|part| !part.ended);
        }
    }
}

/// Where a cursor stands: its next row, or the time from which its next row may be.
struct Place<'a> {
    time: i64,
    id: Option<&'a str>,
}

impl Place<'_> {
    /// An order of ids in which none is the largest.
    fn id_or_none_last(&self) -> (bool, Option<&str>) {
        (self.id.is_none(), self.id)
    }
}

/// The rows of a file, in order.
pub(super) struct PartCursor {
    inner: Arc<Inner>,
    part: Part,
    plan: Arc<Plan>,
    file: Option<PartFile>,
    /// Row groups that were not looked at yet, in order.
    groups: VecDeque<usize>,
    /// Row groups whose bloom filters were asked, in order.
    passed: VecDeque<usize>,
    filters: usize,
    current: Option<Group>,
    ready: VecDeque<OwnedRow>,
    bound: i64,
    ended: bool,
}

impl PartCursor {
    pub(super) fn new(inner: Arc<Inner>, part: Part, plan: Arc<Plan>) -> Self {
        let bound = if plan.descending() { part.last_start } else { part.first_start };
        // An id is in one row group. Of other values, the first row groups may have enough.
        let filters =
            if plan.query.equals.iter().any(|(column, _)| *column == Column::RequestId) { FILTERS } else { 2 };
        Self {
            inner,
            part,
            plan,
            file: None,
            groups: VecDeque::new(),
            passed: VecDeque::new(),
            filters,
            current: None,
            ready: VecDeque::new(),
            bound,
            ended: false,
        }
    }

    fn place(&self) -> Place<'_> {
        match self.ready.front() {
            Some(row) => Place { time: row.start_time, id: Some(&row.request_id) },
            None => Place { time: self.bound, id: None },
        }
    }

    /// Reads until rows are ready, or there are none left.
    async fn fill(&mut self) -> Result<()> {
        while self.ready.is_empty() && !self.ended {
            let file = match &self.file {
                Some(file) => file.clone(),
                None => self.open().await?,
            };
            if let Some(group) = &mut self.current {
                match group.next_rows(&file, &self.plan).await? {
                    Some(rows) => self.ready.extend(rows),
                    None => self.current = None,
                }
                continue;
            }
            match self.next_group(&file).await? {
                Some(group) => self.current = Group::new(&file, group, &self.plan),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<PartFile> {
        let file = PartFile::open(&self.inner, &self.part).await?;
        let groups = file.metadata().row_groups().iter().enumerate();
        self.groups = groups.filter(|(_, group)| group_may_match(&self.plan, group)).map(|(group, _)| group).collect();
        if self.plan.descending() {
            self.groups = self.groups.drain(..).rev().collect();
        }
        self.file = Some(file.clone());
        Ok(file)
    }

    async fn next_group(&mut self, file: &PartFile) -> Result<Option<usize>> {
        while self.passed.is_empty() && !self.groups.is_empty() {
            let count = self.filters.min(self.groups.len());
            let asked: Vec<usize> = self.groups.drain(..count).collect();
            self.filters = (self.filters * 2).min(FILTERS);
            let plan = &self.plan;
            let answers = try_join_all(asked.iter().map(|group| filters_pass(plan, file, *group))).await?;
            self.passed.extend(asked.iter().zip(answers).filter(|(_, passes)| *passes).map(|(group, _)| *group));
        }
        Ok(self.passed.pop_front())
    }
}

async fn filters_pass(plan: &Plan, file: &PartFile, group: usize) -> Result<bool> {
    for (column, values) in &plan.query.equals {
        if column.has_bloom_filter() && !file.may_contain(group, *column, values).await? {
            return Ok(false);
        }
    }
    Ok(true)
}
