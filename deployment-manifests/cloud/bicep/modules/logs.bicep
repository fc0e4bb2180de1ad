// Where logs go.

@description('Where it is.')
param location string

@description('Name of the workspace.')
param workspaceName string

@description('How long they are kept, in days.')
param retentionDays int

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: workspaceName
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: retentionDays
    features: {
      // Only identities with a role.
      disableLocalAuth: true
    }
  }
}

@description('Resource id of the workspace.')
output workspaceId string = workspace.id
