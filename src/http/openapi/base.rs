//! The parts of the OpenAPI document other than its operations, and the tags that group operations.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, ContactBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

/// The tag of the nine published operations.
pub const TAG: &str = "Budget & Spend Tracking";

/// The tag of the operations that book usage.
pub const USAGE_TAG: &str = "Recording usage";

/// The tag of the operations on keys, teams and users.
pub const MANAGEMENT_TAG: &str = "Keys, teams and users";

/// The tag of the further operations that LiteLLM's dashboard and reports read.
pub const DASHBOARD_TAG: &str = "Dashboard";

/// The document's name for its security scheme, an API key in a header.
pub const SECURITY: &str = "APIKeyHeader";

/// The document without its paths.
pub fn base() -> OpenApi {
    let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        "x-litellm-api-key",
        "The master key or a virtual key, with or without `Bearer `. `Authorization: Bearer ...` works as well.",
    )));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("litespend")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("LiteLLM's Budget & Spend Tracking API, served from Rust."))
                .license(Some(LicenseBuilder::new().name("MIT OR Apache-2.0").build()))
                .contact(Some(ContactBuilder::new().name(Some("litespend")).build()))
                .build(),
        )
        .components(Some(ComponentsBuilder::new().security_scheme(SECURITY, scheme).build()))
        .build()
}
