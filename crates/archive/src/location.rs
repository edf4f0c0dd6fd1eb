//! Where an archive is: its URL, and the store that the URL stands for.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use url::Url;

use crate::archive::Options;
use crate::connector::Connector;
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
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        let url = Url::parse(text).map_err(|error| Error::BadUrl(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let reason = "credentials and options belong into environment variables, such as AWS_ACCESS_KEY_ID";
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
        let connector = Connector { connect_timeout: limit.div_f64(5.0), answer_timeout: limit.div_f64(3.0) };
        let unusable = |error: object_store::Error| Error::BadUrl(crate::store::describe(&error));
        let prefix = Path::from(prefix.as_str());
        Ok(match service {
            Service::S3 => {
                let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
                let builder = options
                    .settings
                    .iter()
                    .try_fold(builder, |builder, (name, value)| Ok(builder.with_config(setting(name)?, value)))?;
                let store = builder.with_http_connector(connector).build().map_err(unusable)?;
                Arc::new(PrefixStore::new(store, prefix))
            }
            Service::GoogleCloud => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
                let builder = options
                    .settings
                    .iter()
                    .try_fold(builder, |builder, (name, value)| Ok(builder.with_config(setting(name)?, value)))?;
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
    fn a_bad_url_is_refused_without_repeating_its_secrets() {
        for url in ["", "ftp://host/x", "s3:///nothing", "s3://key:hunter2@bucket/x", "s3://bucket/x?secret=hunter2"] {
            let error = Location::parse(url).unwrap_err();
            assert!(matches!(error, Error::BadUrl(_)), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
