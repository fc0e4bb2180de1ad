//! A TCP proxy on 127.0.0.1 whose line can be cut, or held in one direction.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

const BUFFER_BYTES: usize = 65_536;

#[derive(Debug, Default)]
struct Shared {
    cut: AtomicBool,
    /// What clients send is not passed on.
    held: Mutex<bool>,
    released: Condvar,
    forwarded_bytes: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

/// Forwards connections to another port until it is cut, and again when it is mended.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl TcpProxy {
    /// Listens on a free port for as long as the process lives.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start(target_port: u16) -> anyhow::Result<Self> {
        Self::start_on(crate::ports::free_port()?, target_port)
    }

    /// Listens on `port` for as long as the process lives.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start_on(port: u16, target_port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A target that does not listen looks to the client like a line that is cut.
                connect(&accepting, client, target_port).ok();
            }
        });
        Ok(Self { port, shared })
    }

    /// Where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes forwarded in both directions since the start.
    #[must_use]
    pub fn forwarded_bytes(&self) -> u64 {
        self.shared.forwarded_bytes.load(Ordering::Relaxed)
    }

    /// Breaks all connections; new ones are closed at once.
    pub fn cut(&self) {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in open.drain(..) {
            // Closed already: as wanted.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Keeps back what clients send from now on, as a server does that is too busy to read.
    pub fn hold(&self) {
        self.shared.set_held(true);
    }

    /// Passes on what was kept back, where the connection still is.
    pub fn release(&self) {
        self.shared.set_held(false);
    }

    /// Lets new connections through again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn set_held(&self, held: bool) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.released.notify_all();
    }

    fn wait_until_released(&self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.released.wait_while(held, |held| *held));
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, target_port: u16) -> std::io::Result<()> {
    if shared.cut.load(Ordering::SeqCst) {
        return Ok(());
    }
    let target = TcpStream::connect((Ipv4Addr::LOCALHOST, target_port))?;
    for stream in [&client, &target] {
        stream.set_nodelay(true)?;
    }
    {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Cut while connecting: dropping both ends closes them.
        if shared.cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        open.push(client.try_clone()?);
        open.push(target.try_clone()?);
    }
    let directions = [(client.try_clone()?, target.try_clone()?, true), (target, client, false)];
    for (from, to, can_be_held) in directions {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || forward(&shared, from, to, can_be_held));
    }
    Ok(())
}

fn forward(shared: &Shared, mut from: TcpStream, mut to: TcpStream, can_be_held: bool) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(length) = from.read(&mut buffer) {
        if can_be_held {
            shared.wait_until_released();
        }
        // Before: whoever has read them finds them counted.
        shared.forwarded_bytes.fetch_add(length as u64, Ordering::Relaxed);
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // One direction has ended: end the other too.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    std::io::copy(&mut reader, &mut stream).ok();
                });
            }
        });
        port
    }

    fn echoes(proxy: &TcpProxy) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())) else {
            return false;
        };
        let mut answer = [0; 4];
        stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok()
    }

    #[test]
    fn what_is_held_is_passed_on_later() {
        let proxy = TcpProxy::start(echo_server()).unwrap();
        let mut open = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let mut answer = [0; 4];
        open.write_all(b"ping").unwrap();
        open.read_exact(&mut answer).unwrap();
        proxy.hold();
        open.write_all(b"pong").unwrap();
        open.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        assert!(open.read(&mut answer).is_err(), "it waits");
        open.set_read_timeout(None).unwrap();
        proxy.release();
        open.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
    }

    #[test]
    fn a_cut_breaks_open_connections_and_refuses_new_ones_until_mended() {
        let proxy = TcpProxy::start(echo_server()).unwrap();
        let mut open = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        open.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        open.read_exact(&mut answer).unwrap();
        proxy.cut();
        assert!(!matches!(open.read(&mut answer), Ok(1..)), "the open connection is broken");
        assert!(!echoes(&proxy));
        proxy.mend();
        assert!(echoes(&proxy));
        assert_eq!(proxy.forwarded_bytes(), 16);
    }
}
