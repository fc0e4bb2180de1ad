//! The Modbus TCP path: a coil that stops, a coil or discrete input that tells standstill, a register for the sign of life.
//!
//! One connection for each path, one request at a time, function codes 1, 2, 5 and 6 (MODBUS Application Protocol V1.1b3,
//! section 6). A connection counts as ready when the read-back was answered, not when it was opened: a device that accepts and
//! never answers is a path that is down. After a timeout or an answer that does not fit the connection is dropped: the client
//! library would take the late answer for that of the next request (it compares transaction numbers, so it fails, again and
//! again). An exception of the device keeps the connection. A stop that could not be written is kept, and written first when a
//! connection is open again, before anything is known of it; so a device that hangs gets it at each attempt to connect.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use edge_core::interlock::MachineState;
use shared_proto::model::MachineId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_modbus::client::{Client as _, Context};
use tokio_modbus::{ExceptionCode, Request, Response, Slave};
use tracing::debug;

use super::{Actuator, PathEvent, PathReport, QueueFull, StopOrder};
use crate::config::{ModbusTcp, Settings};
use crate::mqtt::source::random_fraction;
use crate::telemetry;

enum Order {
    Stop(StopOrder),
    Withdraw,
    Heartbeat(u64),
}

/// The handle of a Modbus path.
pub struct ModbusPath {
    orders: mpsc::Sender<Order>,
    has_heartbeat: bool,
}

impl Actuator for ModbusPath {
    fn stop(&self, order: StopOrder) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Stop(order)).map_err(|_| QueueFull)
    }

    fn heartbeat(&self, count: u64) -> Result<(), QueueFull> {
        if !self.has_heartbeat {
            return Ok(());
        }
        self.orders.try_send(Order::Heartbeat(count)).map_err(|_| QueueFull)
    }

    fn withdraw(&self) -> Result<(), QueueFull> {
        self.orders.try_send(Order::Withdraw).map_err(|_| QueueFull)
    }
}

/// One path's connection.
pub struct Device {
    name: String,
    modbus: ModbusTcp,
    path: (MachineId, usize),
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<PathReport>,
    reconnect: (Duration, Duration),
    /// The newest stop that is not written yet.
    wanted: Option<StopOrder>,
    /// The newest count that is not written yet.
    count: Option<u64>,
    told: Option<Standing>,
    /// What the device refused on this connection and has not done since.
    refused: BTreeSet<Exchange>,
}

/// What was told last of the connection.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    Faulty,
    Lost,
}

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exchange {
    Stop,
    Heartbeat,
    ReadBack,
}

/// Why an exchange did not succeed.
enum Trouble {
    /// The device says no; the connection is good.
    Refused(String),
    /// The connection is of no use any more.
    Broken(String),
}

/// The senders are gone: the program ends.
struct Ended;

enum ServeEnd {
    Broken(String),
    Ended,
}

impl From<Ended> for ServeEnd {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

/// The handle and the connection of a path.
pub fn device(
    settings: &Settings,
    modbus: ModbusTcp,
    path: (MachineId, usize),
    reports: &mpsc::Sender<PathReport>,
) -> (ModbusPath, Device) {
    let (sender, orders) = mpsc::channel(settings.protection.path_queue_length);
    let has_heartbeat = modbus.heartbeat_register.is_some();
    let device = Device {
        name: format!("modbus-tcp {}:{} unit {}", modbus.host, modbus.port, modbus.unit),
        modbus,
        path,
        orders,
        reports: reports.clone(),
        reconnect: (settings.mqtt.reconnect_min, settings.mqtt.reconnect_max),
        wanted: None,
        count: None,
        told: None,
        refused: BTreeSet::new(),
    };
    (ModbusPath { orders: sender, has_heartbeat }, device)
}

impl Device {
    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs until the orders' sender or the reports' receiver is gone.
    pub async fn run(mut self) {
        let (wait_min, wait_max) = self.reconnect;
        let mut wait = wait_min;
        loop {
            let end = match self.connect().await {
                Ok((mut context, stamp)) => self.serve(&mut context, &stamp).await,
                Err(why) => ServeEnd::Broken(why),
            };
            let ServeEnd::Broken(why) = end else { return };
            debug!(path = self.name, why, "no connection");
            if self.told == Some(Standing::Ready) {
                wait = wait_min;
            }
            if self.tell_standing(Standing::Lost, PathEvent::Lost(why)).await.is_err() {
                return;
            }
            if self.rest(wait.mul_f64(0.5 + 0.5 * random_fraction())).await.is_err() {
                return;
            }
            wait = (wait * 2).min(wait_max);
        }
    }

    async fn connect(&self) -> Result<(Context, WriteStamp), String> {
        let address = (self.modbus.host.as_str(), self.modbus.port);
        let limit = self.modbus.response_timeout;
        let stream = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Err(_) => return Err(format!("no connection within {limit:?}")),
            Ok(Err(error)) => return Err(error.to_string()),
            Ok(Ok(stream)) => stream,
        };
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let stamp = WriteStamp::default();
        let stream = Stamped { stream, stamp: stamp.clone() };
        let context = tokio_modbus::client::tcp::attach_slave(stream, Slave(self.modbus.unit));
        Ok((context, stamp))
    }

    /// Waits before the next attempt. A stop that comes meanwhile ends the wait and is known to be late.
    async fn rest(&mut self, wait: Duration) -> Result<(), Ended> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                order = self.orders.recv() => {
                    let Some(order) = order else { return Err(Ended) };
                    if self.note(order) {
                        let trip_id = self.wanted.as_ref().map(|order| order.trip_id.clone());
                        let why = "not connected".to_owned();
                        self.tell(PathEvent::Failed { trip_id: trip_id.unwrap_or_default(), why }).await?;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes an order into account; answers whether it is a stop.
    fn note(&mut self, order: Order) -> bool {
        match order {
            Order::Stop(order) => {
                self.wanted = Some(order);
                true
            }
            Order::Withdraw => {
                self.wanted = None;
                false
            }
            Order::Heartbeat(count) => {
                self.count = Some(count);
                false
            }
        }
    }

    /// Uses a connection until it breaks.
    async fn serve(&mut self, context: &mut Context, stamp: &WriteStamp) -> ServeEnd {
        // A sign of life from before the connection is none.
        self.count = None;
        self.refused.clear();
        let mut poll = tokio::time::interval(self.modbus.poll_interval);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let done = self.serve_once(context, stamp, &mut poll).await;
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn serve_once(
        &mut self,
        context: &mut Context,
        stamp: &WriteStamp,
        poll: &mut tokio::time::Interval,
    ) -> Result<(), ServeEnd> {
        if let Some(order) = self.wanted.take() {
            self.write_stop(context, stamp, order).await?;
            poll.reset_immediately();
        }
        if let Some(count) = self.count.take() {
            self.write_heartbeat(context, count).await?;
        }
        tokio::select! {
            biased;
            order = self.orders.recv() => {
                let mut order = order.ok_or(ServeEnd::Ended)?;
                // All that is there: a stop must not wait behind signs of life.
                loop {
                    self.note(order);
                    match self.orders.try_recv() {
                        Ok(next) => order = next,
                        Err(_) => return Ok(()),
                    }
                }
            }
            _ = poll.tick() => self.read_back(context).await,
        }
    }

    async fn write_stop(
        &mut self,
        context: &mut Context,
        stamp: &WriteStamp,
        order: StopOrder,
    ) -> Result<(), ServeEnd> {
        let (coil, value) = (self.modbus.stop_coil, self.modbus.stop_value);
        stamp.take();
        let result = self.call(context, Request::WriteSingleCoil(coil, value)).await;
        let written = stamp.take();
        let trip_id = order.trip_id.clone();
        if let Some(at) = written {
            self.tell(PathEvent::Written { trip_id: trip_id.clone(), at }).await?;
        }
        let trouble = match result {
            Ok(Response::WriteSingleCoil(found, echo)) if (found, echo) == (coil, value) => {
                if let Some(at) = written {
                    metrics::histogram!(telemetry::ACTUATOR_ROUND_TRIP, "kind" => "modbus-tcp")
                        .record(at.elapsed());
                }
                self.refused.remove(&Exchange::Stop);
                return Ok(());
            }
            Ok(other) => Trouble::Broken(format!("write of coil {coil}: answer {other:?}")),
            Err(trouble) => trouble,
        };
        let why = trouble.text().to_owned();
        if matches!(trouble, Trouble::Broken(_)) {
            // Once more when connected again: nobody knows whether it arrived.
            self.wanted.get_or_insert(order);
        }
        self.tell(PathEvent::Failed { trip_id, why }).await?;
        self.settle(Exchange::Stop, trouble).await
    }

    async fn write_heartbeat(&mut self, context: &mut Context, count: u64) -> Result<(), ServeEnd> {
        let Some(register) = self.modbus.heartbeat_register else { return Ok(()) };
        let word = u16::try_from(count % 65_536).expect("a remainder of 65536 fits");
        match self.call(context, Request::WriteSingleRegister(register, word)).await {
            Ok(Response::WriteSingleRegister(..)) => {
                self.refused.remove(&Exchange::Heartbeat);
                Ok(())
            }
            Ok(other) => {
                let why = format!("write of register {register}: answer {other:?}");
                Err(ServeEnd::Broken(why))
            }
            Err(trouble) => self.settle(Exchange::Heartbeat, trouble).await,
        }
    }

    /// Asks whether the machine stands still.
    async fn read_back(&mut self, context: &mut Context) -> Result<(), ServeEnd> {
        let request = match (self.modbus.standstill_input, self.modbus.standstill_coil) {
            (Some(input), _) => Request::ReadDiscreteInputs(input, 1),
            (None, Some(coil)) => Request::ReadCoils(coil, 1),
            (None, None) => return Ok(()),
        };
        let asked = Instant::now();
        let bit = match self.call(context, request).await {
            Ok(Response::ReadDiscreteInputs(bits) | Response::ReadCoils(bits)) => {
                bits.first().copied()
            }
            Ok(other) => {
                return Err(ServeEnd::Broken(format!("read-back: answer {other:?}")));
            }
            Err(trouble) => return self.settle(Exchange::ReadBack, trouble).await,
        };
        let Some(bit) = bit else {
            return Err(ServeEnd::Broken("read-back: an answer without a bit".to_owned()));
        };
        self.refused.remove(&Exchange::ReadBack);
        if self.refused.is_empty() {
            self.tell_standing(Standing::Ready, PathEvent::Ready).await?;
        }
        let state = if bit == self.modbus.standstill_value {
            MachineState::Stopped
        } else {
            MachineState::Running
        };
        let received = Instant::now();
        self.tell(PathEvent::State { state, asked, received, is_retained: false }).await?;
        Ok(())
    }

    /// One request and its answer.
    async fn call(&self, context: &mut Context, request: Request<'_>) -> Result<Response, Trouble> {
        let limit = self.modbus.response_timeout;
        match tokio::time::timeout(limit, context.call(request)).await {
            Err(_) => Err(Trouble::Broken(format!("no answer within {limit:?}"))),
            Ok(Err(error)) => Err(Trouble::Broken(error.to_string())),
            Ok(Ok(Err(exception))) => Err(Trouble::Refused(refusal(exception))),
            Ok(Ok(Ok(response))) => Ok(response),
        }
    }

    /// Tells a refusal, or ends the connection.
    async fn settle(&mut self, exchange: Exchange, trouble: Trouble) -> Result<(), ServeEnd> {
        match trouble {
            Trouble::Broken(why) => Err(ServeEnd::Broken(why)),
            Trouble::Refused(why) => {
                self.refused.insert(exchange);
                let why = format!("{}: {why}", exchange.as_str());
                self.tell_standing(Standing::Faulty, PathEvent::Faulty(why)).await?;
                Ok(())
            }
        }
    }

    /// Tells how the connection stands, when that is news.
    async fn tell_standing(&mut self, standing: Standing, event: PathEvent) -> Result<(), Ended> {
        if self.told.as_ref() == Some(&standing) {
            return Ok(());
        }
        self.told = Some(standing);
        self.tell(event).await
    }

    async fn tell(&self, event: PathEvent) -> Result<(), Ended> {
        let report = PathReport { path: Some(self.path.clone()), event };
        self.reports.send(report).await.map_err(|_| Ended)
    }
}

impl Exchange {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop-coil",
            Self::Heartbeat => "heartbeat-register",
            Self::ReadBack => "read-back",
        }
    }
}

impl Trouble {
    fn text(&self) -> &str {
        match self {
            Self::Refused(why) | Self::Broken(why) => why,
        }
    }
}

fn refusal(exception: ExceptionCode) -> String {
    format!("the device refuses: {exception}")
}

/// When the socket last took bytes.
#[derive(Clone, Debug, Default)]
struct WriteStamp(Arc<Mutex<Option<Instant>>>);

impl WriteStamp {
    fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn take(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A connection that remembers when it was written to.
#[derive(Debug)]
struct Stamped {
    stream: TcpStream,
    stamp: WriteStamp,
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(result, Poll::Ready(Ok(_))) {
            self.stamp.set();
        }
        result
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
