//! The parts that speak with the cloud: one uplink a lane, renewing, commands.
//!
//! In: settings, an open store. Out: tasks. Change here: which of them there are. Not here: when they start and stop (`app`).

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::{
    config::Config,
    downlink::{Document, Downlink, Takers},
    enrol::{self, Identity},
    link::{Address, Batches, Caller, Care, Dial, Plain},
    own,
    status::{LaneStatus, Status},
    store::Store,
    uplink::{self, Format, Part, Share, Uplink},
};

/// Who connects to the cloud, and to which; `None`: there is none.
fn caller(config: &Config, lane: Arc<LaneStatus>) -> Result<Option<Caller>, AppError> {
    let settings = &config.uplink;
    let Ok(address) = Address::parse(&settings.cloud) else { return Ok(None) };
    Ok(Some(Caller {
        address,
        edge_id: config.id.clone(),
        lane: lane.name.clone(),
        status: lane,
        connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
        keep_alive: Duration::from_secs(u64::from(settings.keep_alive_s)),
        login: settings.login().map_err(AppError::Config)?,
        identity: Identity::new(config),
    }))
}

pub(super) fn downlink(
    config: &Config,
    followed: HashMap<u64, u64>,
    (broker, settings): (own::Downward, mpsc::Sender<Document>),
    status: &Arc<Status>,
    stop: &CancellationToken,
) -> Result<Option<Downlink>, AppError> {
    let Some(caller) = caller(config, Arc::default())?.filter(|_| config.downlink.enabled) else {
        return Ok(None);
    };
    status.down.listening.store(true, Relaxed);
    let (status, stop) = (status.clone(), stop.clone());
    let settings_of = (&config.downlink, &config.uplink);
    let takers = Takers { broker, settings };
    Ok(Some(Downlink::new(caller, settings_of, followed, takers, status, stop)))
}

/// One task a lane.
pub(super) fn start_uplinks(
    config: &Config,
    store: &Store,
    status: &Arc<Status>,
    stop: &CancellationToken,
) -> Result<JoinSet<Result<(), AppError>>, AppError> {
    let mut uplinks = JoinSet::new();
    let settings = &config.uplink;
    let share = Share::new(settings.bytes_per_s);
    let identity = Identity::new(config);
    let renewing = enrol::run(identity, status.clone(), stop.clone());
    uplinks.spawn(async move {
        renewing.await;
        Ok(())
    });
    for lane in store.lanes() {
        let Some(caller) = caller(config, lane.status.clone())? else { return Ok(uplinks) };
        let part = Part { store: store.clone(), lane: lane.clone(), share: share.lane() };
        match settings.format {
            Format::Batches => start_uplink(&mut uplinks, part, Batches(caller), settings, stop),
            Format::Mqtt => {
                let plain =
                    Plain { caller, prefix: settings.prefix.clone(), care: Care::default() };
                start_uplink(&mut uplinks, part, plain, settings, stop);
            }
        }
    }
    Ok(uplinks)
}

fn start_uplink(
    uplinks: &mut JoinSet<Result<(), AppError>>,
    part: Part,
    dial: impl Dial + Sync,
    settings: &uplink::Settings,
    stop: &CancellationToken,
) {
    let uplink = Uplink::new(part, dial, settings.clone(), stop.clone());
    uplinks.spawn(async move { uplink.run().await.map_err(AppError::from) });
}
