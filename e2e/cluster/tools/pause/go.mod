module netweft.io/e2e/cluster/tools/pause

go 1.26
