//! The templates, compiled into the program, and what each is given.

use farsite_model::status::GroupStatus;
use jiff::Timestamp;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};

use crate::cards::Board;

pub(crate) struct Pages {
    templates: Environment<'static>,
}

impl Pages {
    pub(crate) fn new() -> Self {
        let mut templates = Environment::new();
        // A name that the template has and the data has not is an error in a test, not an empty place at 3 a.m.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        // The names end in .html: minijinja then escapes everything that comes from the state.
        for (name, source) in [
            ("dashboard.html", include_str!("../templates/dashboard.html")),
            ("cards.html", include_str!("../templates/cards.html")),
        ] {
            templates
                .add_template(name, source)
                .expect("the templates are compiled in and parsed by the tests");
        }
        Self { templates }
    }

    /// The whole page.
    pub(crate) fn dashboard(
        &self,
        groups: &[GroupStatus],
        now: Timestamp,
    ) -> Result<String, minijinja::Error> {
        let board = Value::from(Serde(Board::of(groups, now)));
        self.templates.get_template("dashboard.html")?.render(context! { board, notice => "" })
    }

    /// What changes in the page: the summary and the cards.
    pub(crate) fn cards(&self, groups: &[GroupStatus], now: Timestamp) -> Result<String, minijinja::Error> {
        let board = Value::from(Serde(Board::of(groups, now)));
        self.templates.get_template("cards.html")?.render(context! { board })
    }

    /// The page when the state could not be read: it goes on asking.
    pub(crate) fn without_state(&self, notice: &str) -> Result<String, minijinja::Error> {
        self.templates.get_template("dashboard.html")?.render(context! { board => (), notice })
    }
}
