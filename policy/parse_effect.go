package policy

import "gopkg.in/yaml.v3"

// noEffect lists the keys that are read and checked and that no rule is made
// of in this release. unless is the value that says what happens anyway. A
// key leaves this table in the commit that makes it work.
var noEffect = map[string]struct{ unless, instead string }{
	"metrics.listen": {"", "no metrics are served"},
}

// checkEffect warns about a key that has no effect.
func (r *reader) checkEffect(path string, p pair) {
	e, ok := noEffect[path]
	if !ok {
		return
	}
	if v := r.resolve(p.value); v.Kind == yaml.ScalarNode && v.Value == e.unless {
		return
	}
	r.warn(p.key, "%s has no effect in this release: %s", path, e.instead)
}
