use super::*;

struct Site {
    root: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn machine(&self) -> Machine {
        Machine::below(self.root.path())
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.machine().path(Path::new(path));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::durable::replace_file(&path, text.as_bytes(), 0o644).unwrap();
    }

    /// Carries it out, as far as files go; enabling makes a link.
    fn apply(&self, plan: &Plan) {
        for file in plan.config.iter().chain(&plan.files) {
            self.write(&file.path.display().to_string(), &file.text);
        }
        for path in &plan.removed {
            std::fs::remove_file(self.machine().path(path)).unwrap();
        }
        let wants = |unit: &str| format!("/etc/systemd/system/multi-user.target.wants/{unit}");
        for command in plan.before.iter().chain(&plan.commands) {
            let command: Vec<_> = command.iter().map(String::as_str).collect();
            match command.as_slice() {
                ["systemctl", "enable", unit] => self.write(&wants(unit), ""),
                ["systemctl", "disable", "--now", unit] => {
                    let path = self.machine().path(Path::new(&wants(unit)));
                    std::fs::remove_file(path).unwrap_or_default();
                }
                _ => {}
            }
        }
    }

    fn install(&self, wanted: &Wanted) -> Plan {
        let plan = install(&self.machine(), wanted).unwrap();
        self.apply(&plan);
        plan
    }
}

fn wanted(instance: &str) -> Wanted {
    Wanted {
        instance: Instance::parse(instance).unwrap(),
        user: None,
        config: None,
        listen: None,
        program: PathBuf::from(PACKAGED_PROGRAM),
        separate_mutex: false,
        start: true,
    }
}

fn paths(plan: &Plan) -> Vec<String> {
    plan.files.iter().map(|file| file.path.display().to_string()).collect()
}

fn commands(plan: &Plan) -> Vec<String> {
    plan.before.iter().chain(&plan.commands).map(|words| words.join(" ")).collect()
}

#[test]
fn without_a_package_unit_and_tmpfiles_are_written_and_a_second_time_nothing_is() {
    let site = Site::new();
    let plan = site.install(&wanted("default"));
    let expected = ["/etc/systemd/system/baton.service", "/etc/tmpfiles.d/baton.conf"];
    assert_eq!(paths(&plan), expected);
    assert_eq!(plan.config.as_ref().unwrap().text, TEMPLATE);
    let expected = [
        "systemd-tmpfiles --create /etc/tmpfiles.d/baton.conf",
        "systemctl daemon-reload",
        "systemctl enable baton.service",
        "systemctl restart baton.service",
    ];
    assert_eq!(commands(&plan), expected);
    let again = site.install(&wanted("default"));
    assert_eq!((again.config.as_ref(), paths(&again).len()), (None, 0));
    assert_eq!(commands(&again).last().unwrap(), "systemctl start baton.service");
}

#[test]
fn with_a_package_nothing_is_written_but_what_differs() {
    let site = Site::new();
    site.write("/usr/lib/systemd/system/baton.service", "[Service]\n");
    site.write("/usr/lib/systemd/system/baton@.service", "[Service]\n");
    site.write("/usr/lib/tmpfiles.d/baton.conf", "");
    let plan = site.install(&wanted("default"));
    assert_eq!(paths(&plan), [""; 0]);
    assert_eq!(paths(&site.install(&wanted("blue"))), [""; 0]);
    let other = Wanted { program: PathBuf::from("/opt/baton"), ..wanted("default") };
    let plan = site.install(&other);
    assert_eq!(paths(&plan), ["/etc/systemd/system/baton.service"]);
}

#[test]
fn the_second_agent_gets_the_next_free_port_and_comments_stay() {
    let site = Site::new();
    site.install(&wanted("default"));
    let blue = site.install(&wanted("blue"));
    let green = site.install(&wanted("green"));
    let port = |plan: &Plan| plan.listen.unwrap().port();
    assert_eq!((port(&blue), port(&green)), (10951, 10952));
    let text = blue.config.unwrap().text;
    assert!(text.contains("\nlisten = \"0.0.0.0:10951\"\n"), "{text}");
    assert_eq!(text.lines().count(), TEMPLATE.lines().count());
    assert!(blue.notes[0].contains("port 10950 is that of baton.service"), "{:?}", blue.notes);
    // It keeps its port.
    assert_eq!(port(&site.install(&wanted("blue"))), 10951);
    let taken = Wanted { listen: Some("0.0.0.0:10950".to_owned()), ..wanted("blue") };
    let error = install(&site.machine(), &taken).unwrap_err();
    assert!(matches!(error, ServiceError::Port { port: 10950, .. }), "{error}");
    let none = Wanted { listen: Some("none".to_owned()), ..wanted("blue") };
    assert_eq!(site.install(&none).listen, None);
    let default = Wanted { listen: Some("127.0.0.1:7".to_owned()), ..wanted("default") };
    assert_eq!(port(&site.install(&default)), 7);
}

#[test]
fn a_configuration_that_can_t_be_read_is_no_agent_without_a_port() {
    let site = Site::new();
    for name in ["default", "blue", "green"] {
        site.install(&wanted(name));
    }
    site.write("/etc/baton/instances/blue/agent.toml", "no_key = 1\n");
    let listens: Vec<_> = site.machine().installed().into_iter().map(|a| a.listens).collect();
    let [Listens::At(first), Listens::Unknown(why), Listens::At(third)] = listens.as_slice() else {
        panic!("{listens:?}");
    };
    assert_eq!((first.port(), third.port()), (10950, 10952));
    assert!(why.contains("blue/agent.toml, line 1") && why.contains("no_key"), "{why}");
    let next = site.install(&wanted("red"));
    let is_told = |note: &String| note.contains("port of baton@blue.service: ");
    assert!(next.notes.iter().any(is_told), "{:?}", next.notes);
}

#[test]
fn a_given_configuration_is_checked_and_taken() {
    let site = Site::new();
    let file = site.root.path().join("mine.toml");
    let given = Wanted { config: Some(file.clone()), ..wanted("default") };
    let write = |text: &str| crate::durable::replace_file(&file, text.as_bytes(), 0o644).unwrap();
    write("# mine\nqueue_length = 5\n");
    assert_eq!(site.install(&given).config.unwrap().text, "# mine\nqueue_length = 5\n");
    assert_eq!(site.install(&given).config, None);
    write("queue = 5\n");
    let error = install(&site.machine(), &given).unwrap_err();
    assert!(error.to_string().contains("mine.toml, line 1"), "{error}");
    let away = Wanted { config: Some(site.root.path().join("away.toml")), ..wanted("default") };
    let error = install(&site.machine(), &away).unwrap_err();
    assert!(error.to_string().starts_with("configuration file "), "{error}");
    let flag = Wanted { listen: Some("nonsense".to_owned()), ..wanted("default") };
    let error = install(&site.machine(), &flag).unwrap_err();
    assert!(error.to_string().starts_with("--listen = \"nonsense\": "), "{error}");
    assert_eq!(site.machine().installed().len(), 1);
}

#[test]
fn agents_of_different_users_are_refused_unless_that_is_wanted() {
    let site = Site::new();
    site.install(&wanted("default"));
    let mine = Wanted { user: Some("deploy".to_owned()), ..wanted("blue") };
    let error = install(&site.machine(), &mine).unwrap_err();
    assert!(error.to_string().starts_with("baton.service is run by root"), "{error}");
    let mine = Wanted { separate_mutex: true, ..mine };
    let plan = site.install(&mine);
    let expected = [
        "/etc/systemd/system/baton@.service",
        "/etc/systemd/system/baton@blue.service.d/50-baton.conf",
        "/etc/tmpfiles.d/baton-deploy.conf",
    ];
    assert_eq!(paths(&plan), expected);
    assert!(plan.notes.iter().any(|note| note.contains("/run/lock/baton-deploy")), "{plan:?}");
    let users: Vec<_> =
        site.machine().installed().into_iter().map(|a| (a.user, a.enabled)).collect();
    assert_eq!(users, [(None, true), (Some("deploy".to_owned()), true)]);
    // Root's again.
    let plan = site.install(&wanted("blue"));
    assert_eq!(plan.removed.len(), 1);
    assert_eq!(site.machine().installed()[1].user, None);
}

#[test]
fn where_only_a_client_s_files_are_no_agent_is() {
    let site = Site::new();
    site.write("/etc/baton/targets.toml", "");
    site.write("/etc/baton/instances/blue/client.key", "");
    assert_eq!(site.machine().installed(), []);
    // By hand, without an installation: the agent makes its identity.
    site.write("/etc/baton/instances/blue/agent.key", "");
    let units: Vec<_> = site.machine().installed().iter().map(Installed::unit).collect();
    assert_eq!(units, ["baton@blue.service"]);
}

#[test]
fn what_is_removed_is_what_was_written_and_nobody_else_needs() {
    let site = Site::new();
    assert_eq!(uninstall(&site.machine(), None), Plan::default());
    for name in ["default", "blue", "green"] {
        site.install(&wanted(name));
    }
    let instance = |name: &str| Instance::parse(name).unwrap();
    let remove = |name: &str| {
        let plan = uninstall(&site.machine(), instance(name).as_ref());
        site.apply(&plan);
        plan
    };
    let plan = remove("blue");
    assert_eq!(plan.removed, [""; 0].map(PathBuf::from));
    assert_eq!(commands(&plan)[0], "systemctl disable --now baton@blue.service");
    assert_eq!(remove("green").removed, [Path::new("/etc/systemd/system/baton@.service")]);
    let unit = site.machine().path(Path::new("/etc/systemd/system/baton.service"));
    let own = std::fs::read_to_string(&unit).unwrap();
    // Somebody made it his own.
    crate::durable::replace_file(&unit, &own.as_bytes()[MARK.len()..], 0o644).unwrap();
    assert_eq!(remove("default").removed, [Path::new("/etc/tmpfiles.d/baton.conf")]);
    assert!(unit.exists());
}
