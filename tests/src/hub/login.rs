//! Who a CONNECT says it is, and whether that is shown.

use anyhow::{Context, bail, ensure};
use rumqttc::{Connect, Protocol};
use rustls::pki_types::CertificateDer;

use super::state::Shared;
use super::token::{Expected, check};
use super::topics::{Bag, parse_bag};
use super::{DeviceProof, Peer};

/// The end of a proof that does not end while the connection holds.
const NEVER: i64 = i64::MAX;

/// Whom a connection speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) peer: Peer,
    /// When its token ends, in Unix seconds.
    pub(super) expires: i64,
}

/// The parts of a user name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UserName<'a> {
    /// The hub, or the scope of a registration.
    first: &'a str,
    /// Device, or device and module, or `registrations` and the registration.
    ids: Vec<&'a str>,
    properties: Bag,
}

/// Judges a CONNECT.
///
/// # Errors
/// Why it is refused.
pub(super) fn authenticate(
    shared: &Shared,
    connect: &Connect,
    certificates: &[CertificateDer<'_>],
) -> anyhow::Result<Login> {
    ensure!(connect.protocol == Protocol::V4, "MQTT {:?}", connect.protocol);
    let login = connect.login.as_ref().context("no user name")?;
    let user = UserName::parse(&login.username)?;
    let peer = user.peer(shared)?;
    let settings = &shared.settings;
    let client_id = match peer {
        Peer::Module => format!("{}/{}", settings.device_id, settings.module_id),
        Peer::Device => settings.device_id.clone(),
        Peer::Registration => settings.registration_id.clone(),
    };
    ensure!(connect.client_id == client_id, "the client id {}", connect.client_id);
    let proof = match peer {
        Peer::Module => DeviceProof::Key,
        Peer::Device | Peer::Registration => settings.device_proof,
    };
    match proof {
        DeviceProof::Key => check_token(shared, peer, &login.password),
        DeviceProof::Thumbprint | DeviceProof::Authority => {
            ensure!(login.password.is_empty(), "a password of a device with a certificate");
            check_certificate(shared, proof, certificates)?;
            Ok(Login { peer, expires: NEVER })
        }
    }
}

/// Whether this is a certificate of the device.
fn check_certificate(
    shared: &Shared,
    proof: DeviceProof,
    certificates: &[CertificateDer<'_>],
) -> anyhow::Result<()> {
    let first = certificates.first().context("no certificate")?;
    let now = shared.now();
    let state = shared.lock();
    match proof {
        DeviceProof::Key | DeviceProof::Thumbprint => {}
        DeviceProof::Authority => state.device_authority.check_client(certificates, now)?,
    }
    let known = state.device_certificates.iter().find(|known| known.is(first));
    let known = known.context("a certificate with a thumbprint that nobody has registered")?;
    let settings = &shared.settings;
    let names = [&settings.device_id, &settings.registration_id];
    ensure!(
        names.into_iter().any(|name| name == known.name()),
        "a certificate of {}",
        known.name()
    );
    ensure!(known.holds_at(now), "a certificate that does not hold at {now}");
    Ok(())
}

fn check_token(shared: &Shared, peer: Peer, token: &str) -> anyhow::Result<Login> {
    let key_name = match peer {
        Peer::Module | Peer::Device => None,
        Peer::Registration => Some("registration"),
    };
    let expected = Expected {
        resources: resources(shared, peer),
        keys: shared.keys_of(peer).to_vec(),
        key_name,
        now: shared.now(),
        grace: shared.settings.token_grace,
    };
    Ok(Login { peer, expires: check(token, &expected)? })
}

/// What the token of a client may be for.
fn resources(shared: &Shared, peer: Peer) -> Vec<String> {
    let settings = &shared.settings;
    let path = match peer {
        Peer::Module => format!("devices/{}/modules/{}", settings.device_id, settings.module_id),
        Peer::Device => format!("devices/{}", settings.device_id),
        Peer::Registration => {
            let (scope, id) = (&settings.scope_id, &settings.registration_id);
            return vec![format!("{scope}/registrations/{id}")];
        }
    };
    shared.host_names.iter().map(|host| format!("{host}/{path}")).collect()
}

impl<'a> UserName<'a> {
    fn parse(text: &'a str) -> anyhow::Result<Self> {
        let mut parts: Vec<&str> = text.split('/').collect();
        ensure!((3..=4).contains(&parts.len()), "the user name {text}");
        let properties = parts.pop().and_then(parse_bag);
        let properties = properties.with_context(|| format!("the properties of {text}"))?;
        let version = properties.get("api-version");
        ensure!(version.is_some_and(|version| !version.is_empty()), "no api-version in {text}");
        let first = parts.remove(0);
        Ok(Self { first, ids: parts, properties })
    }

    fn peer(&self, shared: &Shared) -> anyhow::Result<Peer> {
        let settings = &shared.settings;
        if self.ids.first() == Some(&"registrations") {
            let is_known = self.first == settings.scope_id
                && self.ids.get(1) == Some(&settings.registration_id.as_str());
            ensure!(is_known, "the registration {:?} in {}", self.ids.get(1), self.first);
            return Ok(Peer::Registration);
        }
        let is_ours = shared.host_names.iter().any(|host| host.eq_ignore_ascii_case(self.first));
        ensure!(is_ours, "the hub {}", self.first);
        match self.ids.as_slice() {
            [device] if *device == settings.device_id => Ok(Peer::Device),
            [device, module] if *device == settings.device_id && *module == settings.module_id => {
                Ok(Peer::Module)
            }
            ids => bail!("the identity {}", ids.join("/")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_have_three_forms() {
        let parsed = |text| UserName::parse(text).map(|user| (user.first, user.ids.join("/"))).ok();
        let check = |text, expected: Option<(&'static str, &str)>| {
            let expected = expected.map(|(first, ids)| (first, ids.to_owned()));
            assert_eq!(parsed(text), expected, "{text}");
        };
        check("hub/gw/?api-version=2021-04-12", Some(("hub", "gw")));
        let module = "hub/gw/vib/?api-version=2021-04-12&DeviceClientType=a%2F1";
        check(module, Some(("hub", "gw/vib")));
        check("hub/gw/vib/api-version=1", Some(("hub", "gw/vib")));
        check(
            "0ne/registrations/gw/api-version=2019-03-31&ClientVersion=x",
            Some(("0ne", "registrations/gw")),
        );
    }

    #[test]
    fn a_user_name_without_a_version_is_none() {
        let refused = [
            "hub/gw",
            "hub/gw?api-version=1",
            "hub/gw/",
            "hub/gw/?api-version=",
            "hub/gw/vib/?model-id=x",
            "hub/gw/vib/?api-version=1&DeviceClientType=a/1",
        ];
        for text in refused {
            assert!(UserName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn properties_are_decoded() {
        let user = UserName::parse("hub/gw/?api-version=1&DeviceClientType=a%2F1").unwrap();
        assert_eq!(user.properties.get("DeviceClientType").map(String::as_str), Some("a/1"));
    }
}
