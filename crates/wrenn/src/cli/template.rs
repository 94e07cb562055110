//! Grammar of the commands for templates and for logins to registries.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub(crate) enum Template {
    /// Build a template from a Dockerfile, an image, a template or a capsule.
    Build(Box<BuildTemplate>),
    /// List templates.
    #[command(visible_alias = "ls")]
    List,
    /// Show a template and one of its versions, with sources, steps and commands.
    Show {
        /// NAME, NAME:TAG or NAME@BUILD.
        template: String,
    },
    /// List the versions of a template, newest first.
    Versions(Versions),
    /// Give tags to a version of a template.
    Tag {
        /// Version that gets the tags: NAME, NAME:TAG or NAME@BUILD.
        template: String,
        /// New tags of the version. Other versions lose them.
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Remove tags from a template. Versions and capsules stay.
    Untag {
        /// Name of the template.
        template: String,
        /// Tags to remove.
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Let every team create capsules from a template. Logs and steps stay private.
    Publish {
        /// Name of the template.
        template: String,
        /// Let every team find the template by its name alone. Only operators may do so, and only
        /// they may build it from then on.
        #[arg(long)]
        common: bool,
    },
    /// Undo `publish`. Capsules of other teams keep running.
    Unpublish {
        /// Name of the template.
        template: String,
    },
    /// Print the log of a build.
    Logs(BuildLogs),
    /// Cancel a build. Finished steps stay in the cache.
    Cancel {
        /// Id of the build, or the name of a template for its newest build.
        build: String,
    },
    /// Delete templates with all versions and tags. No capsule or snapshot may use them.
    #[command(visible_alias = "rm")]
    Delete {
        /// Names of the templates.
        #[arg(required = true)]
        templates: Vec<String>,
    },
    /// Require a minimum isolation tier of the hosts on which a template's capsules start.
    Require {
        /// Name of the template.
        template: String,
        /// `none`, `tcg`, `kvm` or `jailed`, from weakest to strongest.
        tier: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct BuildTemplate {
    /// Name of the template, as NAME or NAME:TAG. A new name makes a new template.
    pub name: String,
    #[command(flatten)]
    pub source: BuildFrom,
    /// Further tag of the version. Repeatable. Without any tag, the version gets `default`.
    #[arg(long = "tag", short, value_name = "TAG")]
    pub tags: Vec<String>,
    #[command(flatten)]
    pub start: StartOptions,
    /// Default number of virtual CPUs of the template's capsules.
    #[arg(long)]
    pub vcpus: Option<u32>,
    /// Default memory of the template's capsules, in MiB.
    #[arg(long = "memory", value_name = "MIB")]
    pub memory_mib: Option<u32>,
    /// Default disk of the template's capsules, in MiB. The build's disk has this size too.
    #[arg(long = "disk", value_name = "MIB")]
    pub disk_mib: Option<u32>,
    /// NAME=VALUE in the environment of the template's programs. NAME alone takes the value from
    /// this command's environment. Repeatable.
    #[arg(long = "env", short, value_parser = variable, value_name = "NAME[=VALUE]")]
    pub envs: Vec<(String, String)>,
    /// Default user of the template's programs, in place of the last USER.
    #[arg(long, short)]
    pub user: Option<String>,
    /// Default working folder of the template's programs, in place of the last WORKDIR.
    #[arg(long, short = 'w')]
    pub workdir: Option<String>,
    /// Run all steps anew.
    #[arg(long)]
    pub no_cache: bool,
    /// `always` asks the registry for the newest image of a tag. `missing` asks only for an image
    /// that the host does not have. Default: `always`.
    #[arg(long, value_parser = ["always", "missing"])]
    pub pull: Option<String>,
    /// Let every team create capsules from a new template. An operator's new
    /// `code-interpreter` is public without this flag, and common to all teams.
    #[arg(long)]
    pub public: bool,
    /// Print the build's id and return while the build goes on.
    #[arg(long, short)]
    pub detach: bool,
    /// Print each line of output instead of moving progress, as outside of a terminal.
    #[arg(long)]
    pub plain: bool,
}

/// Origin of the template's files.
#[derive(Args, Debug, Default)]
pub(crate) struct BuildFrom {
    /// Folder with the files that COPY names, and by default with the Dockerfile. Default: the
    /// present folder; for `code-interpreter` and `code-interpreter-full`, the recipe of this
    /// command.
    #[arg(conflicts_with_all = ["image", "from", "from_capsule"])]
    pub dir: Option<PathBuf>,
    /// Path of the Dockerfile; `-` means standard input. Default: `Dockerfile` in DIR.
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["image", "from", "from_capsule"])]
    pub file: Option<PathBuf>,
    /// Stage of the Dockerfile to build. Default: the last stage.
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["image", "from", "from_capsule"])]
    pub target: Option<String>,
    /// NAME=VALUE for an ARG of the Dockerfile. NAME alone takes the value from this command's
    /// environment. Repeatable.
    #[arg(long = "build-arg", value_parser = variable, value_name = "NAME[=VALUE]",
        conflicts_with_all = ["image", "from", "from_capsule"])]
    pub args: Vec<(String, String)>,
    /// Image to build from without a Dockerfile: a reference such as `python:3.12`, or
    /// `oci-archive:FILE` for a file of `docker save` or an OCI layout.
    #[arg(long, value_name = "REF", conflicts_with_all = ["from", "from_capsule"])]
    pub image: Option<String>,
    /// Template to build from: NAME, NAME:TAG or NAME@BUILD.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "from_capsule")]
    pub from: Option<String>,
    /// Capsule whose files become the template. Files that its programs wrote are all in it, such
    /// as host keys, shell history and tokens.
    #[arg(long, value_name = "CAPSULE")]
    pub from_capsule: Option<String>,
    /// Save the capsule's memory and processes too. The template's sizes are then fixed.
    #[arg(long, requires = "from_capsule")]
    pub with_memory: bool,
}

/// Start and ready commands of a template.
#[derive(Args, Debug)]
pub(crate) struct StartOptions {
    /// Command that runs when the template's machine is saved, so that capsules begin with it.
    #[arg(long, value_name = "COMMAND")]
    pub start: Option<String>,
    /// Command that succeeds once the machine may be saved, such as a look at the started server's
    /// port. Default: `sleep 20` with a start command.
    #[arg(long, value_name = "COMMAND")]
    pub ready: Option<String>,
    /// Run the start command in each new capsule, with that capsule's environment.
    #[arg(long)]
    pub start_each: bool,
    /// Take the image's ENTRYPOINT and CMD as the start command.
    #[arg(long, conflicts_with = "start")]
    pub start_from_image: bool,
    /// Time within which the template must become ready, such as `90s`, at most `1h`. Default:
    /// `10m`.
    #[arg(long, value_name = "TIME")]
    pub ready_within: Option<humantime::Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct Versions {
    /// Name of the template.
    pub template: String,
    /// Show failed and unfinished builds too.
    #[arg(long, short)]
    pub all: bool,
    /// Number of versions to show.
    #[arg(long, short = 'n', default_value_t = 20)]
    pub count: usize,
}

#[derive(Args, Debug)]
pub(crate) struct BuildLogs {
    /// Id of the build, or the name of a template for its newest build.
    pub build: String,
    /// Print lines as they come, until the build ends. A failed build then is a failure of this
    /// command.
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Registry {
    /// Store a login to a registry, for builds of the team. It replaces an earlier one.
    Login(RegistryLogin),
    /// List the team's logins, without secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Remove logins.
    Logout {
        /// Hosts of the registries.
        #[arg(required = true)]
        registries: Vec<String>,
    },
}

/// Login to a registry. Secrets are never arguments, which every user of the machine could see.
#[derive(Args, Debug)]
pub(crate) struct RegistryLogin {
    /// Host of the registry, such as `ghcr.io` or `registry.example.com:5000`; `docker.io` for
    /// Docker Hub.
    pub registry: String,
    /// User name. Prompted for when left out.
    #[arg(long, short, conflicts_with_all = ["aws", "gcp", "docker"])]
    pub username: Option<String>,
    /// Read the password or access token from standard input instead of a prompt.
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Use the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for Amazon's registry.
    #[arg(long, conflicts_with_all = ["gcp", "docker"])]
    pub aws: bool,
    /// Use the key file of a service account, for Google's registries; `-` means standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "docker")]
    pub gcp: Option<PathBuf>,
    /// Use the login that `docker login` stored on this machine.
    #[arg(long)]
    pub docker: bool,
}

/// Reads `NAME=VALUE`, or `NAME` with the value of this process's variable.
pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return super::pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("must be NAME=VALUE, since the variable {text} is not set here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn build(words: &[&str]) -> Result<BuildTemplate, String> {
        let words = ["wrenn", "template", "build"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Template(Template::Build(build)) = cli.command else { panic!("not build") };
        Ok(*build)
    }

    #[test]
    fn sources_of_a_build_exclude_each_other() {
        let plain = build(&["web"]).unwrap();
        assert_eq!(plain.source.dir, None);
        let named = build(&["web:v1", "app", "-f", "x"]).unwrap();
        assert_eq!(named.source.dir, Some(PathBuf::from("app")));
        assert!(build(&["web", "--image", "debian"]).unwrap().source.image.is_some());
        for words in [
            &["web", "app", "--image", "debian"][..],
            &["web", "--image", "debian", "--from", "base"],
            &["web", "--from", "base", "--target", "x"],
            &["web", "--with-memory"],
            &["web", "--start", "x", "--start-from-image"],
            &["web", "--pull", "never"],
        ] {
            assert!(build(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn variable_without_a_value_comes_from_the_environment() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert_eq!(variable("PATH").unwrap().1, std::env::var("PATH").unwrap());
        assert!(variable("WRENN_NOT_SET_ANYWHERE").unwrap_err().contains("not set"));
    }

    #[test]
    fn password_is_no_argument() {
        let words = ["wrenn", "registry", "login", "ghcr.io", "--password", "x"];
        assert!(Cli::try_parse_from(words).is_err());
    }
}
