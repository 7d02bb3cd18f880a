// The schemas of Kubernetes, which this module has as files. Nothing of it is built.
module github.com/xgw-project/xgw

go 1.26.0

require sigs.k8s.io/kubectl-validate v0.0.4
