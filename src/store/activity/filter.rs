//! Which rows of a daily table a query reads, and the SQL that selects them.

use chrono::{Days, NaiveDate};
use sqlx::{Postgres, QueryBuilder};

use crate::store::activity::daily::push_model;
use crate::store::activity::figures;

/// Approximate number of parts into which a range of days is split.
const PARTS: usize = 8;

/// One of LiteLLM's daily tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DailyTable {
    /// `LiteLLM_DailyUserSpend`.
    User,
    /// `LiteLLM_DailyTeamSpend`.
    Team,
    /// `LiteLLM_DailyTagSpend`: a request with several tags counts once for each.
    Tag,
}

impl DailyTable {
    fn name(self) -> &'static str {
        match self {
            Self::User => r#""LiteLLM_DailyUserSpend""#,
            Self::Team => r#""LiteLLM_DailyTeamSpend""#,
            Self::Tag => r#""LiteLLM_DailyTagSpend""#,
        }
    }

    fn entity(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Team => "team_id",
            Self::Tag => "tag",
        }
    }
}

/// Which rows of a daily table to read. An empty list in a field matches nothing.
#[derive(Clone, Debug)]
pub struct ActivityFilter {
    /// The table to read.
    pub table: DailyTable,
    /// First day, `YYYY-MM-DD`.
    pub start: String,
    /// Last day, included.
    pub end: String,
    /// Only these users, teams or tags; `None` for all.
    pub entities: Option<Vec<String>>,
    /// Users, teams or tags to leave out.
    pub excluded: Vec<String>,
    /// Only keys with these hashes; `None` for all.
    pub api_keys: Option<Vec<String>>,
    /// Only this model; `None` or the empty string for all.
    /// [`UNKNOWN_MODEL`](crate::store::activity::daily::UNKNOWN_MODEL) also matches rows without a model.
    pub model: Option<String>,
    /// Days that are read from the precomputed sums of the rollups. [`begin_snapshot`] fills this field.
    ///
    /// [`begin_snapshot`]: crate::store::activity::begin_snapshot
    pub summed: Vec<NaiveDate>,
    /// Whether the precomputed sums by user and key have all figures. [`begin_snapshot`] fills this field.
    ///
    /// [`begin_snapshot`]: crate::store::activity::begin_snapshot
    pub members_are_complete: bool,
}

/// A source of rows that can be summed by user, team or tag. The sources of a filter have no day in common.
pub(super) enum EntitySource {
    /// Precomputed sums by user and key on these days.
    Members(Vec<String>),
    /// The daily rows that the filter selects.
    Rows(Box<ActivityFilter>),
}

impl EntitySource {
    /// Pushes ` FROM ...` with the column `entity_id` and all figures.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        match self {
            Self::Rows(filter) => filter.push_rows(query),
            Self::Members(days) => {
                query.push(" FROM (SELECT user_id AS entity_id, * FROM litespend.activity_members WHERE date = ANY (");
                query.push_bind(days.clone()).push(")) AS members");
            }
        }
    }
}

/// Defaults of the name columns that an older LiteLLM lacks: part of the outer row of defaults.
const NEWER_NAMES: &str = "NULL::text AS endpoint, NULL::text AS mcp_namespaced_tool_name";

/// The columns by which rows are grouped. In a statement, `entity_id` comes before them, and the figures come after
/// them.
const GROUPS: &str = "date, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint";

impl ActivityFilter {
    /// The same filter, limited to these days.
    pub fn between(self, (start, end): (NaiveDate, NaiveDate)) -> Self {
        Self { start: start.to_string(), end: end.to_string(), ..self }
    }

    /// Whether the filter selects all rows of all users, as the precomputed sums do.
    pub(super) fn is_everybody(&self) -> bool {
        self.table == DailyTable::User
            && self.entities.is_none()
            && self.excluded.is_empty()
            && self.api_keys.is_none()
            && self.model.as_deref().is_none_or(str::is_empty)
    }

    /// Splits the filter into spans of days, so that the database can aggregate several spans in parallel. Days with
    /// precomputed sums are left out.
    pub(super) fn parts(&self) -> Vec<Self> {
        let day = |text: &str| text.parse::<NaiveDate>().ok();
        let (Some(start), Some(end)) = (day(&self.start), day(&self.end)) else { return vec![self.clone()] };
        if !self.summed.is_empty() {
            let rest = Self { summed: Vec::new(), ..self.clone() };
            let mut parts = Vec::new();
            let mut first = start;
            for summed in self.summed.iter().chain(end.succ_opt().as_ref()) {
                if let Some(last) = summed.pred_opt().filter(|last| first <= *last) {
                    parts.extend(rest.clone().between((first, last)).parts());
                }
                first = summed.succ_opt().unwrap_or(NaiveDate::MAX);
            }
            return parts;
        }
        let length = Days::new(u64::try_from((end - start).num_days()).unwrap_or(0) / PARTS as u64);
        let mut parts = Vec::new();
        let mut first = start;
        while let Some(last) = first.checked_add_days(length).filter(|last| *last < end) {
            parts.push(self.clone().between((first, last)));
            let Some(next) = last.succ_opt() else { break };
            first = next;
        }
        parts.push(self.clone().between((first, end)));
        parts
    }

    /// Pushes ` FROM ... ` with the matching rows as `daily`. Columns have LiteLLM's names, except that the entity is
    /// `entity_id`.
    pub(super) fn push_rows(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" FROM (SELECT daily.* FROM (SELECT ").push(NEWER_NAMES).push(", ").push(figures::DEFAULTS.as_str());
        query.push(") AS defaults CROSS JOIN LATERAL (SELECT ").push(self.table.entity());
        query.push(" AS entity_id, id, ").push(GROUPS).push(", ").push(figures::OF_TABLE.as_str());
        query.push(" FROM ").push(self.table.name());
        query.push(" WHERE date >= ").push_bind(self.start.clone());
        query.push(" AND date <= ").push_bind(self.end.clone());
        if let Some(entities) = &self.entities {
            query.push(" AND ").push(self.table.entity()).push(" = ANY (").push_bind(entities.clone()).push(")");
        }
        if !self.excluded.is_empty() {
            query.push(" AND (").push(self.table.entity()).push(" IS NULL OR ").push(self.table.entity());
            query.push(" <> ALL (").push_bind(self.excluded.clone()).push("))");
        }
        if let Some(api_keys) = &self.api_keys {
            query.push(" AND api_key = ANY (").push_bind(api_keys.clone()).push(")");
        }
        push_model(query, self.model.as_deref());
        query.push(") AS daily) AS daily");
    }

    /// The sources of sums by user, team or tag.
    pub(super) fn entity_sources(&self) -> Vec<EntitySource> {
        if self.summed.is_empty() || !self.members_are_complete {
            return vec![EntitySource::Rows(Box::new(Self { summed: Vec::new(), ..self.clone() }))];
        }
        let rest = self.parts().into_iter().map(|part| EntitySource::Rows(Box::new(part)));
        [EntitySource::Members(self.summed_days())].into_iter().chain(rest).collect()
    }

    /// The days with precomputed sums, formatted as in the tables.
    pub(super) fn summed_days(&self) -> Vec<String> {
        self.summed.iter().map(NaiveDate::to_string).collect()
    }

    /// Like [`ActivityFilter::push_rows`], but with only the column `member` (`entity_id` or `api_key`) and sums of the
    /// figures that lists show. A member can have several rows. Days with precomputed sums are read from those sums.
    /// The statement consists of parts, so that the database can sum several in parallel.
    pub(super) fn push_members(&self, query: &mut QueryBuilder<Postgres>, member: &str) {
        if self.summed.is_empty() {
            return self.push_rows(query);
        }
        let days = self.summed_days();
        let mut separator = " FROM (";
        for part in days.chunks(days.len().div_ceil(PARTS)) {
            query.push(separator).push("SELECT ").push(member).push(", ").push(figures::LISTED_SUMS.as_str());
            query.push(" FROM (SELECT user_id AS entity_id, * FROM litespend.activity_members WHERE date = ANY (");
            query.push_bind(part.to_vec()).push(")) AS part GROUP BY 1");
            separator = " UNION ALL ";
        }
        for part in self.parts() {
            query.push(separator).push("SELECT ").push(member).push(", ").push(figures::LISTED_SUMS.as_str());
            part.push_rows(query);
            query.push(" GROUP BY 1");
        }
        query.push(") AS daily");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_day_once() {
        for (start, end) in [
            ("2026-02-01", "2026-02-01"),
            ("2026-02-01", "2026-02-09"),
            ("2026-03-01", "2026-03-31"),
            ("0001-01-01", "9999-12-31"),
            ("2026-01-01", "2027-02-05"),
        ] {
            let filter = ActivityFilter {
                table: DailyTable::User,
                start: start.into(),
                end: end.into(),
                entities: None,
                excluded: Vec::new(),
                api_keys: None,
                model: None,
                summed: Vec::new(),
                members_are_complete: false,
            };
            let parts = filter.parts();
            assert!(parts.len() <= 10, "{start} {end}: {}", parts.len());
            assert_eq!((parts[0].start.as_str(), parts[parts.len() - 1].end.as_str()), (start, end));
            for pair in parts.windows(2) {
                let next = pair[0].end.parse::<NaiveDate>().expect("a day").succ_opt().expect("a next day");
                assert_eq!(pair[1].start, next.to_string());
            }
        }
    }

    #[test]
    fn parts_leave_out_days_that_are_summed() {
        let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
        let parts = |summed: &[&str]| -> Vec<(String, String)> {
            let filter = ActivityFilter {
                table: DailyTable::User,
                start: "2026-02-01".into(),
                end: "2026-02-04".into(),
                entities: None,
                excluded: Vec::new(),
                api_keys: None,
                model: None,
                summed: summed.iter().map(|text| day(text)).collect(),
                members_are_complete: true,
            };
            filter.parts().into_iter().map(|part| (part.start, part.end)).collect()
        };
        let days = |list: &[&str]| -> Vec<(String, String)> {
            list.iter().map(|day| ((*day).to_owned(), (*day).to_owned())).collect()
        };
        assert_eq!(parts(&["2026-02-01", "2026-02-02", "2026-02-03", "2026-02-04"]), []);
        assert_eq!(parts(&["2026-02-02", "2026-02-03"]), days(&["2026-02-01", "2026-02-04"]));
        assert_eq!(parts(&["2026-02-01", "2026-02-04"]), days(&["2026-02-02", "2026-02-03"]));
        assert_eq!(parts(&["2026-02-04"]), days(&["2026-02-01", "2026-02-02", "2026-02-03"]));
        assert_eq!(parts(&["2026-02-01"]), days(&["2026-02-02", "2026-02-03", "2026-02-04"]));
    }
}
