//! Where an archive is: its URL, and the store that the URL stands for.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use rustls::RootCertStore;
use url::Url;

use crate::archive::Options;
use crate::connector::{self, Connector};
use crate::error::{Error, Result};

/// Where an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A directory on this machine.
    Directory(PathBuf),
    /// A bucket (or container) and a path in it.
    Bucket { service: Service, bucket: String, prefix: String },
}

/// A kind of object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    S3,
    GoogleCloud,
    Azure,
}

impl Service {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::GoogleCloud => "gs",
            Self::Azure => "az",
        }
    }
}

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::BadUrl("it is empty".to_owned()));
        }
        if !text.contains("://") {
            let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
            if SCHEMES.contains(&scheme.as_str()) {
                // It would be a directory of this name.
                return Err(Error::BadUrl(format!("after {scheme}: there must be two slashes")));
            }
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if text.contains(char::is_control) {
            return Err(Error::BadUrl("it has a control character".to_owned()));
        }
        let url = Url::parse(text).map_err(|error| Error::BadUrl(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            let reason = "credentials and options belong into environment variables, such as AWS_ACCESS_KEY_ID; in a \
                          path, ? is written as %3F and # as %23";
            return Err(Error::BadUrl(reason.to_owned()));
        }
        let service = match url.scheme() {
            "file" => {
                let path = url.to_file_path();
                return path.map(Self::Directory).map_err(|()| Error::BadUrl("it names no path".to_owned()));
            }
            "s3" | "s3a" => Service::S3,
            "gs" => Service::GoogleCloud,
            "az" | "azure" => Service::Azure,
            other => {
                let reason = format!("the scheme {other} is unknown; there are file, s3, gs and az");
                return Err(Error::BadUrl(reason));
            }
        };
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() {
            return Err(Error::BadUrl("it names no bucket".to_owned()));
        }
        if url.port().is_some() {
            let reason = "a bucket has no port; the address of the store belongs into AWS_ENDPOINT_URL";
            return Err(Error::BadUrl(reason.to_owned()));
        }
        if !bucket.chars().all(|character| character.is_ascii_alphanumeric() || "-._$".contains(character)) {
            let reason = "the name of a bucket has letters, digits, hyphens, periods and underscores only";
            return Err(Error::BadUrl(reason.to_owned()));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|error| Error::BadUrl(error.to_string()))?;
        Ok(Self::Bucket { service, bucket, prefix: prefix.to_string() })
    }

    /// Connects. Creates the directory of a local archive.
    pub(crate) fn store(&self, options: &Options) -> Result<Arc<dyn ObjectStore>> {
        let (service, bucket, prefix) = match self {
            Self::Directory(root) => return directory(root),
            Self::Bucket { service, bucket, prefix } => (*service, bucket, prefix),
        };
        let limit = options.time_limit;
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(2),
                base: 2.0,
            },
            max_retries: options.retries,
            retry_timeout: limit.mul_f64(0.8),
        };
        let connector =
            Connector { authorities: None, connect_timeout: limit.div_f64(5.0), answer_timeout: limit.div_f64(3.0) };
        let unusable = |error: object_store::Error| Error::BadUrl(crate::store::describe(&error));
        // The objects are where the URL says: other engines read them there.
        let prefix = Path::parse(prefix).map_err(|error| Error::BadUrl(error.to_string()))?;
        Ok(match service {
            Service::S3 => {
                let builder = s3(bucket, options)?.with_retry(retry);
                let connector = Connector { authorities: authorities_of_s3(options)?, ..connector };
                let store = builder.with_http_connector(connector).build().map_err(unusable)?;
                Arc::new(PrefixStore::new(store, prefix))
            }
            Service::GoogleCloud => {
                let builder = google_cloud(bucket, options)?.with_retry(retry);
                let store = builder.with_http_connector(connector).build().map_err(unusable)?;
                Arc::new(PrefixStore::new(store, prefix))
            }
            Service::Azure => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
                let builder = options
                    .settings
                    .iter()
                    .try_fold(builder, |builder, (name, value)| Ok(builder.with_config(setting(name)?, value)))?;
                let store = builder.with_http_connector(connector).build().map_err(unusable)?;
                Arc::new(PrefixStore::new(store, prefix))
            }
        })
    }

    /// The directory of a local archive.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(root) => Some(root.clone()),
            Self::Bucket { .. } => None,
        }
    }

    /// Where the bucket is over HTTP, if the settings name another endpoint than that of the service.
    pub(crate) fn endpoint(&self, options: &Options) -> Option<Endpoint> {
        let Self::Bucket { service, bucket, .. } = self else { return None };
        match service {
            Service::S3 => {
                let builder = s3(bucket, options).ok()?;
                let value = |key: AmazonS3ConfigKey| builder.get_config_value(&key);
                let url = value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint))?;
                let names_bucket =
                    value(AmazonS3ConfigKey::VirtualHostedStyleRequest).is_some_and(|text| is_true(&text));
                Some(Endpoint::new(&url, bucket, names_bucket))
            }
            Service::GoogleCloud => {
                let url = google_cloud(bucket, options).ok()?.get_config_value(&GoogleConfigKey::BaseUrl)?;
                Some(Endpoint::new(&url, bucket, false))
            }
            // The credentials of other engines name it.
            Service::Azure => None,
        }
    }

    /// The archive's URL, for engines that read it.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Directory(root) => {
                let root = std::path::absolute(root).unwrap_or_else(|_| root.clone());
                root.display().to_string().trim_end_matches('/').to_owned()
            }
            Self::Bucket { service, bucket, prefix } => {
                let url = format!("{}://{bucket}/{prefix}", service.scheme());
                url.trim_end_matches('/').to_owned()
            }
        }
    }
}

/// The schemes of URLs, with all names.
const SCHEMES: [&str; 6] = ["file", "s3", "s3a", "gs", "az", "azure"];

/// An endpoint that settings name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Without a slash at its end.
    pub(crate) url: String,
    /// Whether its host is the bucket.
    pub(crate) names_bucket: bool,
    bucket: String,
}

impl Endpoint {
    fn new(url: &str, bucket: &str, names_bucket: bool) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), names_bucket, bucket: bucket.to_owned() }
    }

    /// The URL of the bucket.
    pub(crate) fn bucket_url(&self) -> String {
        if self.names_bucket { self.url.clone() } else { format!("{}/{}", self.url, self.bucket) }
    }

    /// The host of the store, without the name of the bucket, and whether it is asked over TLS.
    pub(crate) fn host(&self) -> (&str, bool) {
        let (scheme, host) = self.url.split_once("://").unwrap_or(("https", self.url.as_str()));
        let host = if self.names_bucket {
            host.strip_prefix(self.bucket.as_str()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(host)
        } else {
            host
        };
        (host, !scheme.eq_ignore_ascii_case("http"))
    }
}

/// Whether a setting is on, in the words that stores understand.
pub(crate) fn is_true(text: &str) -> bool {
    ["1", "true", "on", "yes", "y"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// The setting with which the AWS tools name a file of authorities, which may sign the certificate of the store. The
/// library does not know it.
const CA_BUNDLE: &str = "AWS_CA_BUNDLE";

/// The authorities that the settings or the environment name, instead of those that are built in.
fn authorities_of_s3(options: &Options) -> Result<Option<Arc<RootCertStore>>> {
    let setting = options.settings.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(CA_BUNDLE));
    let file = setting.map(|(_, file)| OsString::from(file)).or_else(|| std::env::var_os(CA_BUNDLE));
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    match connector::authorities(&PathBuf::from(file)) {
        Ok(authorities) => Ok(Some(Arc::new(authorities))),
        Err(reason) => Err(Error::BadUrl(format!("{CA_BUNDLE}: {reason}"))),
    }
}

/// A bucket of S3 with all settings of the library.
fn s3(bucket: &str, options: &Options) -> Result<AmazonS3Builder> {
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let builder = options
        .settings
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case(CA_BUNDLE))
        .try_fold(builder, |builder, (name, value)| Ok(builder.with_config(setting(name)?, value)))?;
    for key in [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint] {
        refuse_credentials(builder.get_config_value(&key))?;
    }
    Ok(builder)
}

/// A bucket of Google Cloud with all settings.
fn google_cloud(bucket: &str, options: &Options) -> Result<GoogleCloudStorageBuilder> {
    let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    let builder = options
        .settings
        .iter()
        .try_fold(builder, |builder, (name, value)| Ok(builder.with_config(setting(name)?, value)))?;
    refuse_credentials(builder.get_config_value(&GoogleConfigKey::BaseUrl))?;
    Ok(builder)
}

/// Refuses an endpoint with a user or a password: the statements for other engines name the endpoint.
fn refuse_credentials(endpoint: Option<String>) -> Result<()> {
    let url = endpoint.and_then(|endpoint| Url::parse(&endpoint).ok());
    match url {
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            Err(Error::BadUrl("the endpoint in the settings has credentials".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The key of a setting.
fn setting<K: FromStr>(name: &str) -> Result<K> {
    name.to_ascii_lowercase().parse().map_err(|_| Error::BadUrl(format!("the setting {name} is unknown")))
}

fn directory(root: &std::path::Path) -> Result<Arc<dyn ObjectStore>> {
    let cause = |error: &dyn std::fmt::Display| Error::BadUrl(format!("{}: {error}", root.display()));
    std::fs::create_dir_all(root).map_err(|error| cause(&error))?;
    let store = LocalFileSystem::new_with_prefix(root).map_err(|error| cause(&error))?;
    // A file counts when it and its directory entry are on the disk.
    Ok(Arc::new(store.with_fsync(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_directories_and_buckets() {
        let directory = |path: &str| Ok(Location::Directory(PathBuf::from(path)));
        assert_eq!(Location::parse("/var/archive"), directory("/var/archive"));
        assert_eq!(Location::parse("file:///var/my%20archive"), directory("/var/my archive"));
        let bucket = Location::parse("s3://bucket/some/place/").unwrap();
        assert_eq!(bucket.url(), "s3://bucket/some/place");
        assert_eq!(Location::parse("gs://bucket").unwrap().url(), "gs://bucket");
    }

    #[test]
    fn a_path_is_the_decoded_path_of_its_url() {
        for (url, bucket, prefix) in [
            ("s3://bucket", "bucket", ""),
            ("s3://bucket/", "bucket", ""),
            ("s3://bucket/place/", "bucket", "place"),
            ("S3://Bucket.of_all/place", "Bucket.of_all", "place"),
            ("s3a://bucket/my archive", "bucket", "my archive"),
            ("s3://bucket/my%20archive", "bucket", "my archive"),
            ("s3://bucket/a+b~c[d]", "bucket", "a+b~c[d]"),
            ("s3://bucket/100%", "bucket", "100%"),
            ("s3://bucket/100%25/20%2520", "bucket", "100%/20%20"),
            ("s3://bucket/what%3F%23", "bucket", "what?#"),
            ("s3://bucket/ログ/ü", "bucket", "ログ/ü"),
            ("s3://bucket/%E3%83%AD%E3%82%B0", "bucket", "ログ"),
            ("s3://bucket/a%2Fb", "bucket", "a/b"),
            ("s3://bucket/a/./b/../c", "bucket", "a/c"),
            ("s3://bucket/../../a", "bucket", "a"),
            ("s3://bucket/a..b/...", "bucket", "a..b/..."),
            ("az://$web/place", "$web", "place"),
        ] {
            let Location::Bucket { bucket: found, prefix: path, .. } = Location::parse(url).unwrap() else {
                panic!("{url}")
            };
            assert_eq!((found.as_str(), path.as_str()), (bucket, prefix), "{url}");
            // Names of objects begin with it as it stands.
            assert_eq!(Path::parse(&path).unwrap().as_ref(), prefix, "{url}");
        }
    }

    #[test]
    fn a_url_that_names_no_place_or_another_than_it_seems_to_is_refused() {
        for (url, reason) in [
            ("s3:/bucket/place", "two slashes"),
            ("S3:bucket", "two slashes"),
            ("file:/var/archive", "two slashes"),
            ("s3://bucket/a//b", "empty"),
            ("s3://bucket//", "empty"),
            ("s3://bucket/a/..%2F..%2Fb", "illegal"),
            ("s3://bucket/%FF", ""),
            ("s3://bucket/a%0Ab", "illegal"),
            ("s3://bucket/a\nb", "control character"),
            ("s3://bucket/place?versionId=1", "%3F"),
            ("s3://bucket/place#1", "%23"),
            ("file:///var/archive#1", "%23"),
            ("s3://bucket:9000/place", "port"),
            ("s3://my%20bucket/place", "name of a bucket"),
            ("s3://büchse/place", "name of a bucket"),
        ] {
            let error = Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        // Directories are named as they are, also by paths that look like other URLs.
        for path in ["100%25/my archive", "a?b#c", "./s3:/place", "../archive", "http:archive"] {
            assert_eq!(Location::parse(path), Ok(Location::Directory(PathBuf::from(path))), "{path}");
        }
    }

    #[test]
    fn settings_name_the_endpoint_as_the_store_takes_it() {
        let endpoint = |url: &str, settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Location::parse(url).unwrap().endpoint(&Options { settings, ..Options::default() }).unwrap()
        };
        let of_store = endpoint("s3://bucket/place", &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")]);
        assert_eq!(of_store.bucket_url(), "http://127.0.0.1:9000/bucket");
        assert_eq!(of_store.host(), ("127.0.0.1:9000", false));
        let both = [("AWS_ENDPOINT_URL_S3", "https://s3.example.com"), ("AWS_ENDPOINT", "https://other.example.com")];
        assert_eq!(endpoint("s3://bucket", &both).bucket_url(), "https://s3.example.com/bucket");
        let hosted = [("AWS_ENDPOINT", "https://bucket.example.com"), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "TRUE")];
        let hosted = endpoint("s3://bucket", &hosted);
        assert_eq!(
            (hosted.bucket_url().as_str(), hosted.host()),
            ("https://bucket.example.com", ("example.com", true))
        );
        let google = endpoint("gs://bucket", &[("GOOGLE_BASE_URL", "https://localhost:4443")]);
        assert_eq!(google.bucket_url(), "https://localhost:4443/bucket");
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_its_secrets() {
        for url in ["", "ftp://host/x", "s3:///nothing", "s3://key:hunter2@bucket/x", "s3://bucket/x?secret=hunter2"] {
            let error = Location::parse(url).unwrap_err();
            assert!(matches!(error, Error::BadUrl(_)), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let settings = vec![("AWS_ENDPOINT_URL".to_owned(), "https://user:hunter2@store.example.com".to_owned())];
        let options = Options { settings, ..Options::default() };
        let error = Location::parse("s3://bucket").unwrap().store(&options).unwrap_err();
        assert!(error.to_string().contains("credentials") && !error.to_string().contains("hunter2"), "{error}");
    }
}
