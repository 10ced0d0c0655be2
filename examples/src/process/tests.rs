use super::*;

/// Starts a shell script as a job with its log in `folder`.
fn start(folder: &Path, script: &str) -> Process {
    Process::start(Job {
        name: "the job",
        program: Path::new("sh"),
        arguments: vec!["-c".into(), script.into()],
        log: folder.join("log"),
        output: None,
        group: None,
        at_our_death: Signal::Kill,
    })
    .expect("setpriv is part of every Debian system")
}

/// Returns a folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("examples-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
}

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_process_that_ends_is_reported_with_the_end_of_its_log() {
    let folder = folder("ends");
    let mut job = start(&folder, "echo out of paper >&2; exit 3");
    let error =
        wait_for("never", LIMIT, || job.check_alive().map(|()| None::<()>)).expect_err("the job ends");
    assert!(error.to_string().contains("exit status: 3"), "{error}");
    assert!(error.to_string().contains("out of paper"), "{error}");
    fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn dropping_a_process_ends_it() {
    let folder = folder("drop");
    let job = start(&folder, "exec sleep 600");
    let group = job.group();
    assert_eq!(count_alive(group).expect("/proc can be read"), 1);
    drop(job);
    assert_eq!(count_alive(group).expect("/proc can be read"), 0);
    fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn one_signal_ends_a_whole_group() {
    let folder = folder("group");
    let mut job = start(&folder, "sleep 600 & sleep 600 & wait");
    let group = job.group();
    wait_for("both children", LIMIT, || Ok((count_alive(group)? == 3).then_some(()))).expect("they start");
    find_child(job.id(), &["sleep", "600"]).expect("it is a child");
    find_child(job.id(), &["sleep", "601"]).expect_err("there is no such child");
    send(Signal::Kill, -group).expect("the group is there");
    job.reap().expect("it is our child");
    wait_for("their end", LIMIT, || Ok((count_alive(group)? == 0).then_some(()))).expect("all are gone");
    fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn waiting_has_an_end() {
    let error = wait_for("the cows", Duration::ZERO, || Ok(None::<()>)).expect_err("they do not come");
    assert_eq!(error.to_string(), "the cows: not within 0 s");
}

#[test]
fn a_failed_command_shows_what_it_printed() {
    let arguments = ["-c", "echo no such thing >&2; exit 4"].map(OsStr::new);
    let error = run(Path::new("sh"), &arguments).expect_err("it fails");
    assert!(error.to_string().contains("no such thing"), "{error}");
}
