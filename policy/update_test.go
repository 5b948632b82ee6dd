package policy

import "flag"

// update rewrites the files of testdata that hold what is expected.
var update = flag.Bool("update", false, "rewrite the expected output in testdata")
