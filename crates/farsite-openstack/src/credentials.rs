//! What opens a cloud: read out of clouds.yaml, secure.yaml or the variables `OS_*` at the moment in which a token is asked
//! for, made into Keystone's request, and dropped.
//! Source: Identity API v3, "Password authentication", "Token authentication", "Authenticating with an Application
//! Credential" (<https://docs.openstack.org/api-ref/identity/v3/>).

use std::collections::BTreeMap;

use farsite_model::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clouds::ENVVARS;
use crate::files::{self, Environment};
use crate::{Clouds, CloudsError};

/// Who asks for a token, and for what.
#[derive(Debug, Clone)]
pub struct Credentials {
    who: Who,
    scope: Scope,
}

#[derive(Debug, Clone)]
enum Who {
    Password {
        user: Named,
        password: Secret,
    },
    /// A name belongs to a user, an id does not need one.
    Application {
        id: Option<String>,
        name: Option<String>,
        user: Option<Named>,
        secret: Secret,
    },
    Token(Secret),
}

/// An id, or a name in a domain.
#[derive(Debug, Clone)]
enum Named {
    Id(String),
    Name { name: String, domain: Domain },
}

#[derive(Debug, Clone)]
enum Domain {
    Id(String),
    Name(String),
}

#[derive(Debug, Clone)]
enum Scope {
    Project(Named),
    Domain(Domain),
    System,
    /// An application credential has its own.
    None,
}

#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    clouds: BTreeMap<String, Entry>,
    #[serde(default, rename = "public-clouds")]
    public_clouds: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    auth_type: Option<String>,
    profile: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Option<Hidden>>,
}

/// Whatever stands there, and has no way to be shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
struct Hidden(String);

/// The words that mean something here, as in clouds.yaml; `OS_` and capitals make variables of them.
const WORDS: [&str; 19] = [
    "username",
    "user_id",
    "password",
    "user_domain_id",
    "user_domain_name",
    "project_id",
    "project_name",
    "tenant_id",
    "tenant_name",
    "project_domain_id",
    "project_domain_name",
    "domain_id",
    "domain_name",
    "default_domain",
    "system_scope",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
    "token",
];

impl Clouds {
    /// Reads what opens the cloud `name`, now.
    pub fn credentials(&self, name: &str) -> Result<Credentials, CloudsError> {
        self.credentials_with(name, &|variable| std::env::var(variable).ok())
    }

    /// The same with another environment.
    pub fn credentials_with(
        &self,
        name: &str,
        environment: Environment<'_>,
    ) -> Result<Credentials, CloudsError> {
        let unusable = |why: &str| CloudsError::Unusable {
            file: self.file().to_owned(),
            name: name.to_owned(),
            why: why.to_owned(),
        };
        let files = self.files();
        let read = |file: &Option<std::path::PathBuf>| match file {
            Some(file) => files::read::<Document>(file),
            None => Ok(Document::default()),
        };
        let mut auth = BTreeMap::new();
        let mut auth_type = None;
        let entry = read(&files.clouds)?.clouds.remove(name);
        if name == ENVVARS && entry.is_none() {
            let set = |word: &str| environment(&format!("OS_{}", word.to_uppercase()));
            auth_type = set("auth_type");
            auth.extend(WORDS.iter().filter_map(|word| Some(((*word).to_owned(), Some(Hidden(set(word)?))))));
        } else {
            let entry = entry.ok_or_else(|| unusable("it is not there any more"))?;
            let secure = read(&files.secure)?.clouds.remove(name).unwrap_or_default();
            let profile = match secure.profile.as_ref().or(entry.profile.as_ref()) {
                Some(profile) => read(&files.public)?.public_clouds.remove(profile).unwrap_or_default(),
                None => Entry::default(),
            };
            // The last one counts.
            for layer in [profile, entry, secure] {
                auth_type = layer.auth_type.or(auth_type);
                auth.extend(layer.auth);
            }
        }
        let said: BTreeMap<String, String> = auth
            .into_iter()
            .filter_map(|(word, value)| Some((word, value?.0)).filter(|(_, value)| !value.is_empty()))
            .collect();
        Credentials::of(auth_type.as_deref(), &said).map_err(|why| unusable(&why))
    }
}

impl Credentials {
    /// `said` is what stands under `auth:`. The error is a sentence, without any of it.
    fn of(auth_type: Option<&str>, said: &BTreeMap<String, String>) -> Result<Self, String> {
        let get = |word: &str| said.get(word).cloned();
        let has = |word: &str| said.contains_key(word);
        let domain = |kind: &str| {
            let of_kind = get(&format!("{kind}_domain_id")).map(Domain::Id);
            let of_kind = of_kind.or_else(|| get(&format!("{kind}_domain_name")).map(Domain::Name));
            of_kind
                .or_else(|| get("default_domain").map(Domain::Id))
                .unwrap_or(Domain::Id("default".to_owned()))
        };
        let named = |kind: &str, id: Option<String>, name: Option<String>| {
            id.map(Named::Id).or_else(|| Some(Named::Name { name: name?, domain: domain(kind) }))
        };
        let user = named("user", get("user_id"), get("username"));
        let project = named(
            "project",
            get("project_id").or_else(|| get("tenant_id")),
            get("project_name").or_else(|| get("tenant_name")),
        );
        let kind = match auth_type {
            Some(kind) => kind.strip_prefix("v3").unwrap_or(kind),
            None if has("password") => "password",
            None if has("application_credential_secret") => "applicationcredential",
            None if has("token") => "token",
            None => "password",
        };
        let missing = |word: &str| format!("its `auth:` has no `{word}`");
        let who = match kind {
            "password" => Who::Password {
                user: user.ok_or_else(|| missing("username"))?,
                password: Secret::new(get("password").ok_or_else(|| missing("password"))?),
            },
            "applicationcredential" => {
                let (id, name) = (get("application_credential_id"), get("application_credential_name"));
                if id.is_none() && (name.is_none() || user.is_none()) {
                    return Err(missing("application_credential_id"));
                }
                let secret = get("application_credential_secret");
                let secret = Secret::new(secret.ok_or_else(|| missing("application_credential_secret"))?);
                return Ok(Self { who: Who::Application { id, name, user, secret }, scope: Scope::None });
            }
            "token" => Who::Token(Secret::new(get("token").ok_or_else(|| missing("token"))?)),
            _ => {
                return Err(
                    "its `auth_type` is none of password, v3applicationcredential and token".to_owned()
                );
            }
        };
        let of_domain = get("domain_id").map(Domain::Id).or_else(|| get("domain_name").map(Domain::Name));
        let scope = match (project, of_domain) {
            _ if has("system_scope") => Scope::System,
            (Some(project), _) => Scope::Project(project),
            (None, Some(domain)) => Scope::Domain(domain),
            (None, None) => Scope::None,
        };
        Ok(Self { who, scope })
    }

    /// The body of `POST /v3/auth/tokens`. The secret is in it.
    pub(crate) fn request(&self) -> Value {
        let identity = match &self.who {
            Who::Password { user, password } => {
                let mut user = user.json();
                user["password"] = json!(password.expose());
                json!({ "methods": ["password"], "password": { "user": user } })
            }
            Who::Application { id, name, user, secret } => {
                let mut credential = match (id, name, user) {
                    (Some(id), ..) => json!({ "id": id }),
                    (None, name, user) => json!({ "name": name, "user": user.as_ref().map(Named::json) }),
                };
                credential["secret"] = json!(secret.expose());
                json!({ "methods": ["application_credential"], "application_credential": credential })
            }
            Who::Token(token) => json!({ "methods": ["token"], "token": { "id": token.expose() } }),
        };
        let scope = match &self.scope {
            Scope::Project(project) => json!({ "project": project.json() }),
            Scope::Domain(domain) => json!({ "domain": domain.json() }),
            Scope::System => json!({ "system": { "all": true } }),
            Scope::None => return json!({ "auth": { "identity": identity } }),
        };
        json!({ "auth": { "identity": identity, "scope": scope } })
    }
}

impl Named {
    fn json(&self) -> Value {
        match self {
            Self::Id(id) => json!({ "id": id }),
            Self::Name { name, domain } => json!({ "name": name, "domain": domain.json() }),
        }
    }
}

impl Domain {
    fn json(&self) -> Value {
        match self {
            Self::Id(id) => json!({ "id": id }),
            Self::Name(name) => json!({ "name": name }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(auth_type: Option<&str>, said: &[(&str, &str)]) -> Result<Value, String> {
        let said = said.iter().map(|(word, value)| ((*word).to_owned(), (*value).to_owned())).collect();
        Credentials::of(auth_type, &said).map(|credentials| credentials.request()["auth"].clone())
    }

    #[test]
    fn a_password_is_asked_with_in_the_domains_that_are_named() {
        let said = [
            ("username", "farsite"),
            ("password", "hunter2"),
            ("user_domain_name", "Staff"),
            ("project_name", "dr"),
        ];
        let auth = request(None, &said).unwrap();
        assert_eq!(
            auth["identity"]["password"]["user"],
            json!({ "name": "farsite", "domain": { "name": "Staff" }, "password": "hunter2" })
        );
        assert_eq!(
            auth["scope"],
            json!({ "project": { "name": "dr", "domain": { "id": "default" } } }),
            "a domain that is not named is the default one"
        );
        let with_system = [said.as_slice(), &[("system_scope", "all")]].concat();
        assert_eq!(request(None, &with_system).unwrap()["scope"], json!({ "system": { "all": true } }));
    }

    #[test]
    fn an_application_credential_and_a_token_need_no_user() {
        let by_id = [("application_credential_id", "a1"), ("application_credential_secret", "hunter2")];
        let auth = request(Some("v3applicationcredential"), &by_id).unwrap();
        assert_eq!(auth["identity"]["application_credential"], json!({ "id": "a1", "secret": "hunter2" }));
        assert!(auth.get("scope").is_none(), "it has its own");
        assert_eq!(request(None, &by_id).unwrap(), auth, "the type follows from what is there");
        let auth = request(None, &[("token", "hunter2"), ("project_id", "p1")]).unwrap();
        assert_eq!(auth["identity"]["token"], json!({ "id": "hunter2" }));
        assert_eq!(auth["scope"], json!({ "project": { "id": "p1" } }));
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_quoted() {
        for (auth_type, said, missing) in [
            (None, [("username", "hunter2")].as_slice(), "`password`"),
            (None, &[("password", "hunter2")], "`username`"),
            (Some("v3applicationcredential"), &[("application_credential_secret", "hunter2")], "_id`"),
            (Some("hunter2"), &[("password", "hunter2")], "auth_type"),
        ] {
            let why = request(auth_type, said).unwrap_err();
            assert!(why.contains(missing) && !why.contains("hunter2"), "{why}");
        }
        let said = [("username".to_owned(), "u".to_owned()), ("password".to_owned(), "hunter2".to_owned())];
        let credentials = Credentials::of(None, &said.into_iter().collect()).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
