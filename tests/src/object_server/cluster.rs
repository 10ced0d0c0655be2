//! A distributed store: one master, three nodes with data in racks of their own, one filer, one gateway. Each object is on two of the nodes.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Child;

use anyhow::Context;
use tempfile::TempDir;
use transport_bucket::BucketSettings;

use super::{free_ports, make_bucket, new_folder, settings_of, spawn, wait_until_it_answers};

/// Number of the nodes with data.
const NODES: usize = 3;

/// SeaweedFS as a cluster of six processes, with its data in a folder of its own. They are ended, and the data deleted, when this is dropped.
#[derive(Debug)]
pub struct ObjectCluster {
    s3_port: u16,
    /// Master, filer and gateway.
    others: Vec<Child>,
    nodes: [Option<Child>; NODES],
    /// Goes last: the processes use it.
    folder: TempDir,
}

impl ObjectCluster {
    /// Starts a cluster and makes [`BUCKET`](super::BUCKET).
    ///
    /// # Errors
    /// If the program is not installed, one of the processes ends, or one does not answer.
    pub fn start() -> anyhow::Result<Self> {
        let folder = new_folder()?;
        let [master, master_grpc, filer, filer_grpc, s3_port, s3_grpc] = free_ports()?;
        let masters = format!("127.0.0.1:{master}.{master_grpc}");
        let mut cluster = Self { s3_port, others: Vec::new(), nodes: Default::default(), folder };
        // Second digit: so many further copies of each object, in other racks.
        let further = "-mdir=. -peers=none -telemetry=false -volumeSizeLimitMB=64 -defaultReplication=010";
        let process = cluster.spawn("master", [master, master_grpc], master, further)?;
        cluster.others.push(process);
        for number in 0..NODES {
            let [port, grpc] = free_ports()?;
            fs::create_dir(cluster.node_folder(number))?;
            let further = format!("-max=50 -dir=node{number} -rack=rack{number} -master={masters}");
            let process = cluster.spawn("volume", [port, grpc], port, &further)?;
            cluster.nodes[number] = Some(process);
        }
        let further = format!("-defaultStoreDir=. -master={masters}");
        let process = cluster.spawn("filer", [filer, filer_grpc], filer, &further)?;
        cluster.others.push(process);
        let further = format!(
            "-filer=127.0.0.1:{filer}.{filer_grpc} -config=s3.json -autoCreateBucket=false -port.iceberg=0 -port.lance=0"
        );
        let process = cluster.spawn("s3", [s3_port, s3_grpc], s3_port, &further)?;
        cluster.others.push(process);
        make_bucket(cluster.folder.path(), master, master_grpc)?;
        Ok(cluster)
    }

    /// Ends a node with data at once, as a crash does (SIGKILL). It does not come back.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_volume_server(&mut self, number: usize) -> anyhow::Result<()> {
        let node = self.nodes.get_mut(number).and_then(Option::take);
        let mut process = node.with_context(|| format!("node {number} does not run"))?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Bytes that each node has on its disk.
    ///
    /// # Errors
    /// If its folder cannot be read.
    pub fn held_bytes(&self) -> anyhow::Result<[u64; NODES]> {
        let mut held = [0; NODES];
        for (number, bytes) in held.iter_mut().enumerate() {
            for entry in fs::read_dir(self.node_folder(number))? {
                let entry = entry?;
                if entry.path().extension().is_some_and(|extension| extension == "dat") {
                    *bytes += entry.metadata()?.len();
                }
            }
        }
        Ok(held)
    }

    /// Settings for `prefix` in its bucket.
    #[must_use]
    pub fn settings(&self, prefix: &str) -> BucketSettings {
        settings_of(self.folder.path(), format!("http://127.0.0.1:{}", self.s3_port), prefix)
    }

    fn node_folder(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("node{number}"))
    }

    /// Starts one of the processes, and waits until it answers HTTP at the port `answering`.
    fn spawn(
        &self,
        part: &str,
        [port, grpc]: [u16; 2],
        answering: u16,
        further: &str,
    ) -> anyhow::Result<Child> {
        let line =
            format!("{part} -ip=127.0.0.1 -ip.bind=127.0.0.1 -port={port} -port.grpc={grpc} {further}");
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let folder = self.folder.path();
        let mut process = spawn(folder, &arguments)?;
        let waited = wait_until_it_answers(&mut process, folder, (Ipv4Addr::LOCALHOST, answering).into());
        if waited.is_err() {
            end(&mut process);
        }
        waited.map(|()| process)
    }
}

impl Drop for ObjectCluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().flatten().for_each(end);
        self.others.iter_mut().for_each(end);
    }
}

fn end(process: &mut Child) {
    drop(process.kill());
    drop(process.wait());
}
