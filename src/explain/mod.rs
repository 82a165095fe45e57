//! The methods: a request and a model become attributions with evidence.
