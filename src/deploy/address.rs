//! What the address of an agent looks like. Names are not looked up here.

/// Whether it is `HOST:PORT`, or `[IPv6]:PORT`.
pub fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["web-1:10950", "10.0.0.7:1", "[::1]:10950", "a_b.example:2"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["web", ":1", "::1:1", "a b:1", "https://a:1", "a:0", "a:70000", "[x]:1", "a:"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
