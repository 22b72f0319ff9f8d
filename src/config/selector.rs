//! The Kubernetes structures inside of the configuration: node selector terms and tolerations.
//!
//! They are read field by field, not by k8s-openapi's Deserialize: their fields match without regard to case and their
//! strings are coerced like everywhere else, and an error names the line.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Toleration};

use super::names::{check_label_key, check_label_value};
use super::raw::{Fault, Fields, Raw};

const OPERATORS: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A list of NodeSelectorTerm, with the checks of the API server, which would refuse every PV of the class.
pub(super) fn terms(
    list: &[Raw<'_>],
    warnings: &mut Vec<Fault>,
) -> Result<Vec<NodeSelectorTerm>, Fault> {
    list.iter().map(|raw| term(raw, warnings)).collect()
}

fn term(raw: &Raw<'_>, warnings: &mut Vec<Fault>) -> Result<NodeSelectorTerm, Fault> {
    let fields = raw.fields(&["matchExpressions", "matchFields"], warnings)?;
    let mut requirements =
        |name, is_field| -> Result<Option<Vec<NodeSelectorRequirement>>, Fault> {
            let items = fields.items(name)?;
            let all = items
                .iter()
                .map(|item| requirement(item, is_field, warnings))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(Some(all).filter(|all| !all.is_empty()))
        };
    let term = NodeSelectorTerm {
        match_expressions: requirements("matchExpressions", false)?,
        match_fields: requirements("matchFields", true)?,
    };
    if term == NodeSelectorTerm::default() {
        warnings.push(raw.fault("this term is empty and matches no node"));
    }
    Ok(term)
}

fn requirement(
    raw: &Raw<'_>,
    is_field: bool,
    warnings: &mut Vec<Fault>,
) -> Result<NodeSelectorRequirement, Fault> {
    let fields = raw.fields(&["key", "operator", "values"], warnings)?;
    let key = fields.text("key")?;
    let operator = fields.text("operator")?;
    let values = match fields.get("values") {
        Some(values) => values.texts()?,
        None => Vec::new(),
    };
    if is_field {
        if key != "metadata.name" {
            return Err(fields.fault(
                "key",
                format!("a field to match can only be metadata.name, not {key:?}"),
            ));
        }
        if !matches!(operator.as_str(), "In" | "NotIn") || values.len() != 1 {
            return Err(
                raw.fault("a field is matched with operator In or NotIn and exactly one value")
            );
        }
    } else {
        check_label_key(&key)
            .map_err(|why| fields.fault("key", format!("illegal label key {key:?}: {why}")))?;
        let wrong = match operator.as_str() {
            "In" | "NotIn" if values.is_empty() => Some("needs at least one value"),
            "Exists" | "DoesNotExist" if !values.is_empty() => Some("takes no values"),
            "Gt" | "Lt" if values.len() != 1 => Some("needs exactly one value"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(fields.fault("values", format!("operator {operator} {wrong}")));
        }
        one_of(&fields, "operator", &operator, OPERATORS)?;
    }
    Ok(NodeSelectorRequirement {
        key,
        operator,
        values: Some(values).filter(|values| !values.is_empty()),
    })
}

/// One Toleration, with the checks of the API server, which would refuse every Job.
pub(super) fn toleration(raw: &Raw<'_>, warnings: &mut Vec<Fault>) -> Result<Toleration, Fault> {
    let fields = raw.fields(
        &["key", "operator", "value", "effect", "tolerationSeconds"],
        warnings,
    )?;
    let toleration = Toleration {
        key: fields.non_empty("key")?,
        operator: fields.non_empty("operator")?,
        value: fields.non_empty("value")?,
        effect: fields.non_empty("effect")?,
        toleration_seconds: match fields.get("tolerationSeconds") {
            Some(seconds) => seconds.integer()?,
            None => None,
        },
    };
    if let Some(key) = &toleration.key {
        check_label_key(key)
            .map_err(|why| fields.fault("key", format!("illegal taint key {key:?}: {why}")))?;
    } else if toleration.operator.as_deref() != Some("Exists") {
        return Err(fields.fault("operator", "without a key the operator must be Exists"));
    }
    match toleration.operator.as_deref() {
        Some("Exists") if toleration.value.is_some() => {
            return Err(fields.fault("value", "operator Exists takes no value"));
        }
        // Lt and Gt exist behind a feature gate since Kubernetes 1.35.
        Some(operator) => one_of(
            &fields,
            "operator",
            operator,
            &["Exists", "Equal", "Lt", "Gt"],
        )?,
        None => {}
    }
    if let Some(value) = &toleration.value {
        check_label_value(value)
            .map_err(|why| fields.fault("value", format!("illegal value {value:?}: {why}")))?;
    }
    if let Some(effect) = &toleration.effect {
        one_of(&fields, "effect", effect, EFFECTS)?;
    }
    if toleration.toleration_seconds.is_some() && toleration.effect.as_deref() != Some("NoExecute")
    {
        return Err(fields.fault("tolerationSeconds", "it needs the effect NoExecute"));
    }
    Ok(toleration)
}

fn one_of(fields: &Fields<'_>, name: &str, value: &str, legal: &[&str]) -> Result<(), Fault> {
    if legal.contains(&value) {
        return Ok(());
    }
    Err(fields.fault(
        name,
        format!("unknown {name} {value:?}: use {}", legal.join(", ")),
    ))
}
