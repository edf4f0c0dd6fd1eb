//! Fees for tools that a provider runs: web search, opening pages, grounding with Google Maps. The provider determines
//! which count and which price apply.

use rust_decimal::Decimal;

use crate::PricingError;
use crate::bill::breakdown::{Bill, ComponentKind as Kind};
use crate::names::catalog::Resolved;
use crate::names::lookup::lookup;
use crate::table::PriceTable;
use crate::table::prices::{ModelPrices, SearchPrices};
use crate::usage::Usage;

/// Signs in a response, besides its usage, that the model used tools.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ToolSigns<'a> {
    /// The model name in the response.
    pub model: &'a str,
    /// Whether a choice cites a URL, as answers do that are based on a web search.
    pub cites_urls: bool,
}

/// Adds the lines for tool calls.
pub(crate) fn bill_tools(
    bill: &mut Bill,
    table: &PriceTable,
    resolved: &Resolved,
    usage: Option<&Usage>,
    signs: ToolSigns<'_>,
) -> Result<(), PricingError> {
    let Some((prices, provider)) = &resolved.tools else {
        return Ok(());
    };
    if let Some(usage) = usage {
        bill_maps(bill, prices, provider, usage)?;
    }
    if !signs.cites_urls && !usage.is_some_and(reports_searches) {
        return Ok(());
    }
    if let Some(usage) = usage
        && bill_counted_searches(bill, table, prices, provider, usage, signs)?
    {
        return Ok(());
    }
    // Without a count, the response is billed as one search.
    let requested = usage.and_then(|usage| usage.tools?.web_searches);
    bill.count(Kind::WebSearches, requested.unwrap_or(0).max(1), medium(prices.search))
}

fn reports_searches(usage: &Usage) -> bool {
    usage.prompt.as_ref().is_some_and(|details| details.web_searches.is_some())
        || usage.tools.is_some_and(|tools| tools.web_searches.is_some())
        || usage.xai_web_searches.is_some_and(|searches| searches > 0)
}

fn bill_maps(bill: &mut Bill, prices: &ModelPrices, provider: &str, usage: &Usage) -> Result<(), PricingError> {
    let requests = usage.prompt.as_ref().and_then(|details| details.maps_requests);
    let requests = requests.unwrap_or(0);
    if requests == 0 || (provider != "gemini" && !provider.starts_with("vertex_ai")) {
        return Ok(());
    }
    // Google's list prices of October 2026, for entries that have none: per query, or per prompt.
    let (billed, list_price) =
        if prices.bills_each_search { (requests, Decimal::new(14, 3)) } else { (1, Decimal::new(25, 3)) };
    let price = prices.standard(crate::table::prices::Rate::MapsQuery);
    bill.count(Kind::MapsRequests, billed, price.unwrap_or(list_price))
}

/// Bills the searches that the usage counts. Returns `false` if this provider's usage holds no count.
fn bill_counted_searches(
    bill: &mut Bill,
    table: &PriceTable,
    prices: &ModelPrices,
    provider: &str,
    usage: &Usage,
    signs: ToolSigns<'_>,
) -> Result<bool, PricingError> {
    let requested = usage.tools.and_then(|tools| tools.web_searches);
    let served_by = match provider {
        "gemini" => return bill_google_searches(bill, prices, usage).map(|()| true),
        "anthropic" => "anthropic",
        vertex if vertex.starts_with("vertex_ai") => {
            if !signs.model.to_lowercase().contains("claude") {
                return bill_google_searches(bill, prices, usage).map(|()| true);
            }
            "vertex_ai"
        }
        "azure_ai" => {
            if !prices.name.to_lowercase().contains("claude") && requested.is_none() {
                return Ok(false);
            }
            "azure_ai"
        }
        // Perplexity's own bill includes searches.
        "perplexity" => return Ok(true),
        "xai" => return bill_xai_searches(bill, prices, usage).map(|()| true),
        "groq" => {
            if let Some(tools) = usage.tools {
                let searches = tools.web_searches.unwrap_or(0);
                bill.count(Kind::WebSearches, searches, medium(prices.search))?;
                let opens = tools.browser_opens.unwrap_or(0);
                bill.count(Kind::BrowserOpens, opens, Decimal::new(1, 3))?;
            }
            return Ok(true);
        }
        _ => return Ok(false),
    };
    let served_prices = || lookup(table, signs.model, Some(served_by))?.search;
    let search = prices.search.or_else(served_prices);
    bill.count(Kind::WebSearches, requested.unwrap_or(0), medium(search))?;
    Ok(true)
}

fn bill_google_searches(bill: &mut Bill, prices: &ModelPrices, usage: &Usage) -> Result<(), PricingError> {
    let in_details = usage.prompt.as_ref().and_then(|details| details.web_searches);
    let searches = in_details
        .filter(|searches| *searches > 0)
        .or_else(|| usage.tools.and_then(|tools| tools.web_searches))
        .unwrap_or(0);
    let billed = if prices.bills_each_search { searches } else { searches.min(1) };
    let list_price = Decimal::new(35, 3);
    let price = prices.search.and_then(|search| search.medium);
    bill.count(Kind::WebSearches, billed, price.unwrap_or(list_price))
}

fn bill_xai_searches(bill: &mut Bill, prices: &ModelPrices, usage: &Usage) -> Result<(), PricingError> {
    if usage.reported_cost.is_some_and(|cost| !cost.is_breakdown) {
        return Ok(());
    }
    let search = prices.search.unwrap_or_default();
    let price = [search.medium, search.low, search.high]
        .into_iter()
        .flatten()
        .find(|price| *price > Decimal::ZERO)
        .unwrap_or_else(|| Decimal::new(5, 3));
    bill.count(Kind::WebSearches, usage.xai_web_searches.unwrap_or(0), price)
}

fn medium(search: Option<SearchPrices>) -> Decimal {
    search.and_then(|search| search.medium).unwrap_or_default()
}
