//! Who comes in and what they may do: listeners with their certificates, names with their passwords, rules. All of it can
//! change while the edge runs.
//!
//! In: the settings, again at SIGHUP, and the files they name, looked at every few seconds. Out: [`Listener`]s to open,
//! [`Identities`] to ask, [`Permissions`] to the broker. What is bad in a change leaves the old in force and is counted.
//! Change here: what a reload reaches. Not here: what settings mean (`shared::net::listener`, `shared::auth`).

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    auth::{self, Identities, LoadError, Method, Permissions, rules::RuleError},
    net::{
        Listener,
        listener::{Common, ListenError, Settings},
        tls::TlsError,
    },
};

use crate::{config::Config, status::Number};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Why access cannot be as the settings say.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AccessError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    File(#[from] LoadError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("`rules`: {0}")]
    Rule(#[from] RuleError),
    #[error("`listen.mqtt` is empty and there are no [[listeners]]: nobody could connect")]
    NoListener,
    #[error("listener `{0}` takes {1:?}, which `auth` does not offer any more")]
    Method(String, Method),
}

impl AccessError {
    /// The settings are wrong: the same start fails again.
    pub fn is_setting(&self) -> bool {
        match self {
            Self::Listen(error) => error.is_setting(),
            Self::Rule(_) | Self::NoListener | Self::Method(..) => true,
            Self::File(_) | Self::Tls(_) => false,
        }
    }
}

/// Everything about access.
#[derive(Debug)]
pub struct Access {
    /// Who is who.
    pub identities: Arc<Identities>,
    /// As the settings say, not open.
    pub listeners: Vec<Listener>,
    permissions: watch::Sender<Arc<Permissions>>,
    config: Mutex<Config>,
    /// Changes taken.
    pub reloads: Number,
    /// Changes not taken, or not all of it.
    pub failed_reloads: Number,
    /// The last change was not taken.
    pub stale: AtomicBool,
}

impl Access {
    /// Checks settings and reads files; opens nothing.
    pub async fn prepare(config: &Config) -> Result<Arc<Self>, AccessError> {
        let identities = Identities::open(&config.auth)?;
        let permissions = permissions(config)?;
        let common = Common {
            identities: &identities,
            rules: !permissions.is_everything(),
            allow_insecure: config.net.allow_insecure,
        };
        let mut listeners = Vec::new();
        let plain = Settings { address: config.listen.mqtt.clone(), ..Settings::default() };
        let plain = (!plain.address.is_empty()).then(|| ("listen.mqtt".to_owned(), &plain));
        let more = config.listeners.iter().enumerate();
        let more = more.map(|(at, settings)| (format!("listeners[{at}]"), settings));
        for (name, settings) in plain.into_iter().chain(more) {
            listeners.push(Listener::prepare(settings, &name, common).await?);
        }
        if listeners.is_empty() {
            return Err(AccessError::NoListener);
        }
        Ok(Arc::new(Self {
            identities,
            listeners,
            permissions: watch::Sender::new(Arc::new(permissions)),
            config: Mutex::new(config.clone()),
            reloads: Number::default(),
            failed_reloads: Number::default(),
            stale: AtomicBool::new(false),
        }))
    }

    /// What clients may do, now and after each change.
    pub fn permissions(&self) -> watch::Receiver<Arc<Permissions>> {
        self.permissions.subscribe()
    }

    /// Takes changed settings and files. What is bad is left as it was, everything else is taken; the error is the first
    /// of them. New listeners, and other addresses or transports, need a restart.
    pub fn reload(&self, new: &Config) -> Result<(), AccessError> {
        let outcomes = [self.reload_rules(new), self.reload_names(new), self.reload_tls()];
        let outcome = outcomes.into_iter().collect::<Result<(), _>>();
        self.stale.store(outcome.is_err(), Relaxed);
        match &outcome {
            Ok(()) => self.reloads.add(1),
            Err(_) => self.failed_reloads.add(1),
        }
        outcome
    }

    fn reload_rules(&self, new: &Config) -> Result<(), AccessError> {
        let permissions = permissions(new)?;
        if permissions.is_everything() && !new.net.allow_insecure {
            let exposed = self.listeners.iter().find(|listener| listener.is_exposed());
            if let Some(listener) = exposed {
                return Err(ListenError::NoRules(listener.setting.clone()).into());
            }
        }
        self.config().rules.clone_from(&new.rules);
        self.permissions.send_if_modified(|current| {
            let changed = **current != permissions;
            if changed {
                *current = Arc::new(permissions);
            }
            changed
        });
        Ok(())
    }

    fn reload_names(&self, new: &Config) -> Result<(), AccessError> {
        let offers = |method| match method {
            Method::Password | Method::Scram => !new.auth.password_file.is_empty(),
            Method::Token => {
                !new.auth.token_key_files.is_empty() || !new.auth.token_secret_files.is_empty()
            }
            Method::Certificate | Method::Anonymous => true,
        };
        for listener in &self.listeners {
            if let Some(method) = listener.methods.iter().find(|method| !offers(**method)) {
                return Err(AccessError::Method(listener.setting.clone(), *method));
            }
        }
        self.identities.reload(&new.auth)?;
        self.config().auth.clone_from(&new.auth);
        Ok(())
    }

    fn reload_tls(&self) -> Result<(), AccessError> {
        let all = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let outcomes: Vec<Result<(), TlsError>> = all.map(|tls| tls.reload()).collect();
        Ok(outcomes.into_iter().collect::<Result<(), _>>()?)
    }

    fn config(&self) -> std::sync::MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes changes until `stop`: settings that are sent, files that look different.
    pub async fn follow(
        self: Arc<Self>,
        mut new: watch::Receiver<Config>,
        stop: CancellationToken,
    ) {
        let mut seen = self.stamps();
        let mut look = interval(LOOK);
        loop {
            let config = tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = new.changed() => {
                    tell_what_needs_a_restart(&self.config(), &new.borrow_and_update());
                    new.borrow().clone()
                }
                _ = look.tick() => {
                    let now = self.stamps();
                    if now == seen {
                        continue;
                    }
                    self.config().clone()
                }
            };
            // Taken before reading: a change while we read is seen the next time.
            seen = self.stamps();
            let this = Arc::clone(&self);
            let outcome = tokio::task::spawn_blocking(move || this.reload(&config)).await;
            match outcome {
                Ok(Ok(())) => tracing::info!("access rules, names and certificates read again"),
                Ok(Err(error)) => tracing::error!(%error, "kept as it was"),
                Err(error) => tracing::error!(%error, "reload died"),
            }
        }
    }

    fn stamps(&self) -> BTreeMap<String, Option<(SystemTime, u64)>> {
        let auth::Settings { password_file, token_key_files, token_secret_files, .. } =
            self.config().auth.clone();
        let tls = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let tls = tls.flat_map(|tls| tls.files().cloned());
        let all = [password_file].into_iter().chain(token_key_files).chain(token_secret_files);
        let stamp = |file: &str| {
            let data = fs::metadata(file).ok()?;
            Some((data.modified().ok()?, data.len()))
        };
        all.chain(tls).map(|file| (file.clone(), stamp(&file))).collect()
    }
}

/// Rules; none at all: everybody may do everything, and only listeners on loopback are opened.
fn permissions(config: &Config) -> Result<Permissions, RuleError> {
    if config.rules.is_empty() {
        Ok(Permissions::everything())
    } else {
        Permissions::new(&config.rules)
    }
}

fn tell_what_needs_a_restart(old: &Config, new: &Config) {
    let taken = Config { rules: new.rules.clone(), auth: new.auth.clone(), ..old.clone() };
    if taken != *new {
        tracing::warn!(
            "of changed settings only `rules` and `auth` are taken now, others at the next start"
        );
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::auth::{Action, Rule, Who};

    use super::*;

    const ANN: Who<'_> = Who { principal: Some("ann"), client_id: "c" };

    fn rule(topic: &str) -> Rule {
        Rule { who: vec!["*".to_owned()], topics: vec![topic.to_owned()], ..Rule::default() }
    }

    fn config() -> Config {
        let mut config = Config { rules: vec![rule("a/#")], ..Config::default() };
        config.listen.mqtt = "127.0.0.1:0".to_owned();
        config
    }

    fn may(access: &Access, topic: &str) -> bool {
        access.permissions().borrow().may(ANN, Action::Publish, topic)
    }

    #[tokio::test]
    async fn new_rules_are_taken_and_bad_ones_leave_the_old_in_force() {
        let mut config = config();
        let access = Access::prepare(&config).await.unwrap();
        assert!(may(&access, "a/x") && !may(&access, "b"));
        config.rules.push(rule("b"));
        access.reload(&config).unwrap();
        assert!(may(&access, "b"));
        config.rules.push(rule("b/#/c"));
        let error = access.reload(&config).unwrap_err().to_string();
        assert!(error.contains("rule 3"), "{error}");
        assert!(may(&access, "b") && !may(&access, "c"));
        assert_eq!((access.reloads.get(), access.failed_reloads.get()), (1, 1));
    }

    /// mosquitto CVE-2018-12550: an emptied rule file opened the broker.
    #[tokio::test]
    async fn rules_that_vanish_do_not_open_a_listener_beyond_loopback() {
        let mut config = config();
        config.net.allow_insecure = true;
        config.listen.mqtt = "0.0.0.0:0".to_owned();
        let access = Access::prepare(&config).await.unwrap();
        config.net.allow_insecure = false;
        config.rules.clear();
        let error = access.reload(&config).unwrap_err().to_string();
        assert!(error.contains("listen.mqtt") && error.contains("no access rules"), "{error}");
        assert!(!may(&access, "secret"));
        assert!(Access::prepare(&config).await.is_err());
    }

    #[tokio::test]
    async fn a_means_that_a_listener_takes_cannot_be_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let (_, device) = auth::password::Stored::for_new_device().unwrap();
        fs::write(&file, format!("gw:{device}\n")).unwrap();
        let mut config = config();
        config.auth.password_file = file.to_str().unwrap().to_owned();
        let access = Access::prepare(&config).await.unwrap();
        assert_eq!(access.listeners[0].methods[..], [Method::Password, Method::Scram]);
        let before = access.stamps();
        fs::write(&file, format!("gw-2:{device}\ngw:{device}\n")).unwrap();
        assert_ne!(access.stamps(), before);
        access.reload(&config).unwrap();
        assert_eq!(access.identities.sizes().0, 2);
        config.auth.password_file.clear();
        let error = access.reload(&config).unwrap_err().to_string();
        assert!(error.contains("listen.mqtt"), "{error}");
        assert_eq!(access.identities.sizes().0, 2);
    }
}
