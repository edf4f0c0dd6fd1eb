//! Streams a response with aggregated activity while the database computes the sums. Only one day of the response is in
//! memory at a time.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};

use crate::http::error::ApiError;
use crate::http::reads::Reads;
use crate::http::routes::activity::daily::{
    Breakdown, DailySpendData, DailySpendMetadata, Entities, KeyMetrics, bucket_of_key, log_window, metadata_of,
    provider_metadata, user_metadata,
};
use crate::http::routes::dates::parse_day;
use crate::http::state::AppState;
use crate::http::stream::writer::Writer;
use crate::http::stream::writer::name;
use crate::store::Statement;
use crate::store::activity;
use crate::store::activity::figures::Figures;
use crate::store::activity::{ActivityFilter, DaySums, Dimension};
use crate::store::key_metadata;
use crate::store::key_metadata::KeyMetadata;
use crate::store::reading::Reading;

/// A day with more rows than this is large. The server holds only one large day in memory at a time; others wait.
const LARGE_DAY: usize = 5_000;

/// Maximum number of rows of a day. Each row is the sum of a group, or of a key in a group.
const MAX_ROWS: usize = 100_000;

/// Name of rows without a user, team or tag.
const UNASSIGNED: &str = "Unassigned";

/// The data that a response needs in addition to the sums.
struct Frame {
    filter: ActivityFilter,
    /// The listed keys, and the metadata of keys.
    top: Vec<String>,
    keys: BTreeMap<String, KeyMetadata>,
    /// Metadata of users, teams or tags.
    entities: Entities,
    /// Paging, and the number of keys.
    metadata: DailySpendMetadata,
}

/// The metadata of the users, teams or tags of a response.
pub enum EntityMetadata {
    /// As given. An entity without an entry has none.
    Given(Entities),
    /// The e-mail address and the alias of each user.
    OfUsers,
}

/// Sends the response: the sums of each day, those of the `limit` keys with the largest spend, and those by user, team or
/// tag.
pub async fn respond(
    state: &AppState,
    reads: &Reads,
    mut filter: ActivityFilter,
    limit: i64,
    entities: EntityMetadata,
) -> Result<Response, ApiError> {
    let mut reading = activity::begin_snapshot(reads.start().await?, &mut filter, state.has_rollups()).await?;
    let connection = reading.connection();
    let top = activity::top_keys(connection, &filter, limit).await?;
    let names: BTreeSet<String> = top.iter().map(|key| key.api_key.clone()).filter(|key| !key.is_empty()).collect();
    let days = activity::first_and_last_day(connection, &filter).await?;
    let days: Vec<_> = [days.0, days.1].into_iter().flatten().filter_map(|day| parse_day(&day)).collect();
    let keys = key_metadata::find(connection, &names, log_window(&days)).await?;
    let counts = activity::entity_keys(connection, &filter).await?;
    let entities = match entities {
        EntityMetadata::Given(entities) => entities,
        EntityMetadata::OfUsers => {
            let users: Vec<String> = counts.iter().map(|(user, _)| user.clone()).collect();
            let names = activity::daily::user_names(connection, &users).await?;
            names.into_iter().map(|(user, email, alias)| (user, user_metadata(email, alias))).collect()
        }
    };
    let metadata = DailySpendMetadata {
        page: 1,
        total_pages: 1,
        api_key_limit: Some(limit),
        total_api_keys: Some(top.first().map_or(0, |key| key.keys)),
        entity_total_api_keys: Some(
            counts.into_iter().map(|(entity, keys)| (entity_name(Some(entity)), keys)).collect(),
        ),
        ..DailySpendMetadata::default()
    };
    let top = top.into_iter().map(|key| key.api_key).collect();
    let frame = Frame { filter, top, keys, entities, metadata };
    reads.send(write(state.clone(), reading, frame), "application/json").await
}

fn entity_name(entity: Option<String>) -> String {
    entity.filter(|entity| !entity.is_empty()).unwrap_or_else(|| UNASSIGNED.to_owned())
}

fn write(state: AppState, mut reading: Reading, mut frame: Frame) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut writer = Writer::new();
        writer.open_object();
        writer.name(name!("results"));
        writer.open_list();
        let mut totals = Figures::default();
        let mut permits = None;
        {
            let mut query = Statement::default();
            let mut rows = activity::day_sums(reading.connection(), &mut query, &frame.filter, &frame.top);
            let mut open: Option<(String, Day)> = None;
            while let Some(row) = rows.try_next().await? {
                if let Some((date, day)) = open.take_if(|(date, _)| *date != row.date) {
                    day.write(&date, &mut writer)?;
                    if let Some(chunk) = writer.chunk() {
                        yield chunk;
                    }
                }
                let (_, day) = open.get_or_insert_with(|| (row.date.clone(), Day::default()));
                if row.dimension == Dimension::Day {
                    totals += &row.sums;
                }
                day.rows += 1;
                if day.rows > MAX_ROWS {
                    Err(too_many(&row.date))?;
                }
                if day.rows > LARGE_DAY && permits.is_none() {
                    permits = Some(state.large_days.lock().await);
                }
                day.add(row, &frame);
            }
            if let Some((date, day)) = open {
                day.write(&date, &mut writer)?;
            }
        }
        reading.finish().await?;
        let of_days = DailySpendMetadata::of(&totals);
        frame.metadata = DailySpendMetadata {
            page: frame.metadata.page,
            total_pages: frame.metadata.total_pages,
            api_key_limit: frame.metadata.api_key_limit,
            total_api_keys: frame.metadata.total_api_keys,
            entity_total_api_keys: frame.metadata.entity_total_api_keys.take(),
            ..of_days
        };
        writer.close();
        writer.name(name!("metadata"));
        writer.value(&frame.metadata)?;
        writer.close();
        yield writer.take();
    }
}

/// Adds to the sums of a key within a group.
fn add_key(keys: &mut BTreeMap<String, Box<KeyMetrics>>, key: &str, metrics: &Figures, frame: &Frame) {
    let entry = keys.entry(bucket_of_key(key)).or_insert_with(|| {
        Box::new(KeyMetrics { metrics: Figures::default(), metadata: metadata_of(key, &frame.keys) })
    });
    entry.metrics += metrics;
}

/// A 400 for a day with more than [`MAX_ROWS`] rows.
fn too_many(date: &str) -> ApiError {
    let message = format!(
        "{date} has more than {MAX_ROWS} sums of models, keys, providers, tools, endpoints, users, teams and \
         tags. Filter by a model, key, user, team or tag."
    );
    ApiError::detail(StatusCode::BAD_REQUEST, message)
}

/// The sums of one day that have arrived so far.
#[derive(Default)]
struct Day {
    /// Number of rows that have arrived.
    rows: usize,
    metrics: Figures,
    breakdown: Breakdown,
}

impl Day {
    fn add(&mut self, row: DaySums, frame: &Frame) {
        let metrics = row.sums;
        let breakdown = &mut self.breakdown;
        let (groups, name) = match (row.dimension, row.name) {
            (Dimension::Day, _) => {
                self.metrics = metrics;
                return;
            }
            (Dimension::Key, _) => {
                let key = row.api_key.unwrap_or_default();
                add_key(&mut breakdown.api_keys, &key, &metrics, frame);
                // Same order as the row's `names`.
                let groups = [
                    &mut breakdown.models,
                    &mut breakdown.model_groups,
                    &mut breakdown.providers,
                    &mut breakdown.mcp_servers,
                    &mut breakdown.endpoints,
                ];
                for (groups, name) in groups.into_iter().zip(row.names.unwrap_or_default()) {
                    if let Some(name) = name {
                        add_key(&mut groups.entry(name).or_default().api_key_breakdown, &key, &metrics, frame);
                    }
                }
                return;
            }
            (Dimension::Model, name) => (&mut breakdown.models, name),
            (Dimension::ModelGroup, name) => (&mut breakdown.model_groups, name),
            (Dimension::Provider, name) => (&mut breakdown.providers, name),
            (Dimension::Tool, name) => (&mut breakdown.mcp_servers, name),
            (Dimension::Endpoint, name) => (&mut breakdown.endpoints, name),
            (Dimension::Entity, name) => (&mut breakdown.entities, Some(entity_name(name))),
        };
        // Rows without a tool or endpoint do not form a group.
        let Some(name) = name else { return };
        let metadata = match row.dimension {
            Dimension::Provider => Some(provider_metadata(&name)),
            Dimension::Entity => frame.entities.get(&name).cloned(),
            _ => None,
        };
        let group = groups.entry(name).or_default();
        match row.api_key {
            None => {
                group.metrics = metrics;
                group.metadata = metadata.unwrap_or_default();
            }
            Some(key) => add_key(&mut group.api_key_breakdown, &key, &metrics, frame),
        }
    }

    /// Writes the day. A row whose `date` is not a valid day is left out.
    fn write(self, date: &str, writer: &mut Writer) -> Result<(), ApiError> {
        match parse_day(date) {
            Some(date) => writer.value(&DailySpendData { date, metrics: self.metrics, breakdown: self.breakdown }),
            None => Ok(()),
        }
    }
}
