//! Addresses of the hub, and a comparison of their hosts.

use std::fmt;

use ureq::http::Uri;

/// An address with its scheme and host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address {
    text: String,
    uri: Uri,
}

impl Address {
    /// None: the text is no address of `http` or `https`.
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        // A name and password in it would be sent, and printed.
        let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        (is_web && has_host && is_plain).then(|| Self { text: text.to_owned(), uri })
    }

    /// Target of a redirect. None: it has none.
    pub fn join(&self, location: &str) -> Option<Self> {
        let (scheme, authority) = (self.uri.scheme_str()?, self.uri.authority()?);
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        match location.starts_with('/') {
            true => Self::parse(&format!("{scheme}://{authority}{location}")),
            false => Self::parse(location),
        }
    }

    pub fn is_encrypted(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// True if scheme, host and port are those of another address.
    pub fn is_same_origin(&self, other: &Self) -> bool {
        let origin = |address: &Self| {
            let port = address.uri.port_u16().unwrap_or(if address.is_encrypted() { 443 } else { 80 });
            (address.is_encrypted(), address.uri.host().map(str::to_lowercase), port)
        };
        origin(self) == origin(other)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host, for messages: the rest of the address may hold a signature.
    pub fn host(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A name in a path, all but plain characters and the slashes of `kept` escaped.
pub(super) fn escaped(name: &str, kept: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            text.push(c);
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_addresses_of_the_web() {
        let base = Address::parse("https://hub.example/org/name").unwrap();
        let to = |location: &str| base.join(location).map(|address| address.to_string());
        assert_eq!(to("/api/x?y=1").as_deref(), Some("https://hub.example/api/x?y=1"));
        assert_eq!(to("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to("http://cdn.example:81/x").as_deref(), Some("http://cdn.example:81/x"));
        for nowhere in ["", "x", "ftp://x/y", "file:///etc/passwd", "https://", "https://me:pw@x/y", "javascript:x"] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text: &str| Address::parse(text).unwrap();
        assert!(of("https://Hub.example/a").is_same_origin(&of("https://hub.example:443/b")));
        for other in ["http://hub.example/a", "https://hub.example:444/a", "https://hub.example.evil/a"] {
            assert!(!of("https://hub.example/a").is_same_origin(&of(other)), "{other}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("data/a b?#%ü.json", "/"), "data/a%20b%3F%23%25%C3%BC.json");
        assert_eq!(escaped("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}
