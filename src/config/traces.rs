//! Settings of OpenTelemetry traces: the standard variables `OTEL_*`, as far as they have a meaning here.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use url::Url;

use super::{Reader, Section};

/// Path of traces below `OTEL_EXPORTER_OTLP_ENDPOINT`.
const TRACES_PATH: &str = "v1/traces";

/// Settings of traces.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Export of spans; `None`: no spans are recorded.
    pub export: Option<TraceExport>,
}

/// Settings of the export of spans.
#[derive(Clone, Debug)]
pub struct TraceExport {
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT` with the path of traces.
    pub endpoint: Url,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: often credentials, so their values are not shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`, in milliseconds: time-out of a request.
    pub timeout: Duration,
    /// `OTEL_SERVICE_NAME`; by default the name of the component.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: Vec<(String, String)>,
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: Sampler,
}

/// Decision which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether the caller's decision is followed, if there is one.
    pub follows_caller: bool,
    /// Share of the other traces that are recorded, from 0 to 1.
    pub ratio: f64,
}

impl Section for Traces {
    fn read(reader: &mut Reader) -> Option<Self> {
        let is_disabled = reader.boolean("otel_sdk_disabled", false);
        let base = reader.parsed("otel_exporter_otlp_endpoint", None, |value| {
            let mut url = http_url(value)?;
            if !url.path().ends_with('/') {
                url.set_path(&format!("{}/", url.path()));
            }
            url.join(TRACES_PATH).map(Some).map_err(|error| error.to_string())
        });
        let exact = reader.parsed("otel_exporter_otlp_traces_endpoint", None, |value| http_url(value).map(Some));
        let protocol = reader.parsed("otel_exporter_otlp_protocol", (), |value| match value {
            "http/protobuf" => Ok(()),
            _ => Err(format!("must be http/protobuf, not {value:?}; a collector receives it on port 4318")),
        });
        let headers = reader.parsed("otel_exporter_otlp_headers", Vec::new(), headers);
        let timeout_ms = reader.number("otel_exporter_otlp_timeout", 10_000, 1..=60_000);
        let resource = reader.parsed("otel_resource_attributes", Vec::new(), pairs);
        let service_name = reader.get("otel_service_name").map(str::to_owned);
        let sampler = sampler(reader);
        let (is_disabled, endpoint) = (is_disabled?, exact?.or(base?));
        let (headers, timeout_ms, resource, sampler) = (headers?, timeout_ms?, resource?, sampler?);
        protocol?;
        let export = endpoint.filter(|_| !is_disabled).map(|endpoint| TraceExport {
            endpoint,
            headers,
            timeout: Duration::from_millis(timeout_ms),
            service_name,
            resource,
            sampler,
        });
        Some(Self { export })
    }
}

fn http_url(value: &str) -> Result<Url, String> {
    match Url::parse(value) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty() => Ok(url),
        _ => Err("must be an http or https URL without credentials, such as http://collector:4318".to_owned()),
    }
}

fn sampler(reader: &mut Reader) -> Option<Sampler> {
    let ratio = reader.parsed("otel_traces_sampler_arg", 1.0, |value| match value.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("must be a number from 0 to 1, not {value:?}")),
    })?;
    let default = Sampler { follows_caller: true, ratio: 1.0 };
    reader.parsed("otel_traces_sampler", default, |value| {
        let (follows_caller, name) = match value.strip_prefix("parentbased_") {
            Some(name) => (true, name),
            None => (false, value),
        };
        let ratio = match name {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => ratio,
            _ => {
                return Err(format!(
                    "must be always_on, always_off, traceidratio, or one of these after parentbased_, not {value:?}"
                ));
            }
        };
        Ok(Sampler { follows_caller, ratio })
    })
}

/// Pairs `name=value` between commas. Characters of the values may be percent-encoded.
fn pairs(value: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.trim().is_empty())?;
        // A plus sign is no blank here.
        let value = value.trim().replace('+', "%2B");
        let decoded = url::form_urlencoded::parse(format!("v={value}").as_bytes()).next()?.1.into_owned();
        Some((name.trim().to_owned(), decoded))
    };
    let texts = value.split(',').filter(|text| !text.trim().is_empty());
    texts.map(pair).collect::<Option<_>>().ok_or_else(|| "must be name=value pairs between commas".to_owned())
}

fn headers(value: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let header = |(name, value): (String, String)| {
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((name.parse().ok()?, value))
    };
    // The value may be a secret, so the text does not repeat it.
    pairs(value)?
        .into_iter()
        .map(header)
        .collect::<Option<_>>()
        .ok_or_else(|| "must be names and values of headers".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn read(values: &[(&str, &str)]) -> Result<Traces, Vec<String>> {
        let pairs = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load::<Traces>(pairs.collect::<Vec<_>>().into_iter()).map_err(|problems| problems.0)
    }

    #[test]
    fn traces_are_off_until_there_is_an_endpoint() {
        assert!(read(&[("OTEL_SERVICE_NAME", "x")]).expect("valid").export.is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(read(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).expect("valid").export.is_none());
        for (given, expected) in [
            (endpoint, "http://collector:4318/v1/traces"),
            (("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c/otlp/"), "https://c/otlp/v1/traces"),
            (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c/spans"), "https://c/spans"),
        ] {
            assert_eq!(read(&[given]).expect("valid").export.expect("on").endpoint.as_str(), expected);
        }
    }

    #[test]
    fn headers_and_attributes_are_decoded_and_headers_not_shown() {
        let values = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20a+b, x-tenant=t"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.namespace=a%2Cb"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let export = read(&values).expect("valid").export.expect("on");
        assert_eq!(export.headers[0].1, "Bearer a+b");
        assert_eq!(export.resource[1], ("service.namespace".to_owned(), "a,b".to_owned()));
        assert_eq!(export.sampler, Sampler { follows_caller: true, ratio: 0.25 });
        assert!(!format!("{export:?}").contains("Bearer"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@c"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ] {
            let problems = read(&[(name, value)]).expect_err(value);
            assert!(problems.len() == 1 && problems[0].contains(name), "{problems:?}");
            assert!(!problems[0].contains("secret"), "{problems:?}");
        }
    }
}
